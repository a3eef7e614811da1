//! Memory that was freed and not given back.
//!
//! Decides when the allocator looks after it. mimalloc keeps what is freed for a second, as it may
//! be wanted again, and gives it back when it next frees something large. A process that is idle
//! then, as after a start that has read a million keys, or after a list of all of them, would keep
//! hundreds of megabytes. Called by a thread that wakes up rarely.

/// More than mimalloc takes from a page that it keeps. Nothing is written to it, so it costs no
/// memory.
const LARGE_BYTES: usize = 64 << 20;

/// Has the allocator give back what was freed more than a second ago. Where the system does not even
/// promise so much memory, nothing happens.
pub fn give_back() {
    let mut large = Vec::<u8>::new();
    if large.try_reserve_exact(LARGE_BYTES).is_ok() {
        drop(std::hint::black_box(large));
    }
}
