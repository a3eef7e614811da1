//! What a run cost: processor time, memory, bytes to the disk, and who else was busy.
//!
//! Decides what counts as the server's cost (user and system time of its process), and what as a
//! disturbance (time stolen by the host, and user processes that are neither the server nor us).
//! Kernel threads belong to the run: they write what the server wrote. Reads `/proc` only.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use super::{load::TellAtEnd, probe::pause};

/// The flag of a kernel thread in `/proc/PID/stat`.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// Bytes of a sector in `/proc/diskstats`, whatever the device's own are.
const SECTOR_BYTES: u64 = 512;

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All resident pages, with those of mapped files.
    pub resident: u64,
    /// Resident pages that no file backs.
    pub anonymous: u64,
}

/// Readings at one instant.
#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    server: u64,
    own: u64,
    others: u64,
    stolen: u64,
    busy: u64,
    process_written: u64,
    device_written: u64,
}

/// A time in which a server's cost is measured.
#[derive(Debug)]
pub struct Window {
    pids: Vec<u32>,
    device: (u32, u32),
    before: Reading,
}

/// What a window cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Real time.
    pub elapsed: Duration,
    /// Processor time of the server.
    pub server: Duration,
    /// Processor time of this process.
    pub generator: Duration,
    /// Processor time of everything, as the system counts it.
    pub system: Duration,
    /// Time of other user processes and time stolen by the host, as a share of all processors.
    pub disturbance: f64,
    /// Bytes that the server's process caused to be written.
    pub process_written: u64,
    /// Bytes written to the block device, by anyone.
    pub device_written: u64,
}

impl Window {
    /// Begins to measure the processes `pids`, whose files are in `dir`.
    ///
    /// # Errors
    /// If one is gone.
    pub fn open(pids: Vec<u32>, dir: &Path) -> anyhow::Result<Self> {
        let device = fs::metadata(dir)?.dev();
        let device = (rustix::fs::major(device), rustix::fs::minor(device));
        Ok(Self { device, before: Reading::take(&pids, device)?, pids })
    }

    /// Ends the measurement.
    ///
    /// # Errors
    /// If a process is gone.
    pub fn close(&self) -> anyhow::Result<Cost> {
        let after = Reading::take(&self.pids, self.device)?;
        let before = &self.before;
        let elapsed = after.at.saturating_duration_since(before.at);
        let foreign = ticks(after.others.saturating_sub(before.others))
            + ticks(after.stolen.saturating_sub(before.stolen));
        let processors = std::thread::available_parallelism()?.get();
        let available = elapsed.as_secs_f64() * f64::from(u32::try_from(processors)?);
        Ok(Cost {
            elapsed,
            server: ticks(after.server.saturating_sub(before.server)),
            generator: ticks(after.own.saturating_sub(before.own)),
            system: ticks(after.busy.saturating_sub(before.busy)),
            disturbance: foreign.as_secs_f64() / available.max(0.001),
            process_written: after.process_written.saturating_sub(before.process_written),
            device_written: after.device_written.saturating_sub(before.device_written),
        })
    }
}

impl Reading {
    fn take(pids: &[u32], device: (u32, u32)) -> anyhow::Result<Self> {
        let own = std::process::id();
        let (busy, stolen) = system_ticks(&fs::read_to_string("/proc/stat")?)?;
        let (mut server, mut written) = (0, 0);
        for pid in pids {
            server += Process::read(*pid)?.ticks;
            written += process_written(*pid)?;
        }
        Ok(Self {
            at: Instant::now(),
            server,
            own: Process::read(own)?.ticks,
            others: others(&[pids, &[own]].concat())?,
            stolen,
            busy,
            process_written: written,
            device_written: device_written(&fs::read_to_string("/proc/diskstats")?, device),
        })
    }
}

/// A duration of so many of the system's ticks.
fn ticks(count: u64) -> Duration {
    let per_second = rustix::param::clock_ticks_per_second();
    Duration::from_micros(count * 1_000_000 / per_second)
}

/// What `/proc/PID/stat` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    kernel: bool,
    /// Of its own threads.
    ticks: u64,
    /// With those of children that were waited for, so that a sum over all processes does not
    /// forget those that end.
    family_ticks: u64,
}

impl Process {
    fn read(pid: u32) -> anyhow::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))
            .with_context(|| format!("process {pid} is gone"))?;
        Self::parse(&text).with_context(|| format!("/proc/{pid}/stat reads {text}"))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        // The name in parentheses may hold spaces; the state is the third field.
        let (_, fields) = text.rsplit_once(')').context("no name")?;
        let fields: Vec<_> = fields.split_whitespace().collect();
        let field = |number: usize| -> anyhow::Result<u64> {
            let text = fields.get(number - 3).context("too few fields")?;
            Ok(text.parse().unwrap_or_default())
        };
        let ticks = field(14)? + field(15)?;
        Ok(Self {
            kernel: field(9)? & KERNEL_THREAD != 0,
            ticks,
            family_ticks: ticks + field(16)? + field(17)?,
        })
    }
}

/// Ticks of all user processes but those named.
fn others(left_out: &[u32]) -> anyhow::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        if left_out.contains(&pid) {
            continue;
        }
        // It may have ended since the directory was read.
        let Ok(process) = Process::read(pid) else { continue };
        if !process.kernel {
            sum += process.family_ticks;
        }
    }
    Ok(sum)
}

/// Busy and stolen ticks of all processors.
fn system_ticks(stat: &str) -> anyhow::Result<(u64, u64)> {
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let fields: Vec<u64> =
        line.split_whitespace().skip(1).map(|text| text.parse().unwrap_or_default()).collect();
    ensure!(8 <= fields.len(), "/proc/stat has {} fields", fields.len());
    // user nice system idle iowait irq softirq steal
    let busy = fields[0] + fields[1] + fields[2] + fields[5] + fields[6];
    Ok((busy, fields[7]))
}

fn process_written(pid: u32) -> anyhow::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).context("cannot read /proc/PID/io")?;
    named_number(&text, "write_bytes:").context("no write_bytes")
}

/// Bytes written to `device` since the start of the system; 0 for a file system without one.
fn device_written(diskstats: &str, device: (u32, u32)) -> u64 {
    let (major, minor) = (device.0.to_string(), device.1.to_string());
    let sectors = diskstats.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let found = *fields.first()? == major && *fields.get(1)? == minor;
        found.then(|| fields.get(9)?.parse::<u64>().ok()).flatten()
    });
    sectors.unwrap_or_default() * SECTOR_BYTES
}

fn named_number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// The memory of a process now.
///
/// # Errors
/// If it is gone.
pub fn memory(pid: u32) -> anyhow::Result<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} is gone"))?;
    let kib = |name| named_number(&text, name).with_context(|| format!("no {name}"));
    Ok(Memory { resident: kib("VmRSS:")? * 1024, anonymous: kib("RssAnon:")? * 1024 })
}

/// Processor time of all children that ended and were waited for.
///
/// # Errors
/// If the system does not tell.
pub fn ended_children() -> anyhow::Result<Duration> {
    let own = Process::read(std::process::id())?;
    Ok(ticks(own.family_ticks - own.ticks))
}

/// How often memory is looked at.
const MEMORY_EVERY: Duration = Duration::from_millis(2);

/// Runs `work` while another thread watches the process's anonymous memory; returns by how many
/// bytes it grew at most. Pages of mapped files do not count: the system takes them back.
///
/// # Errors
/// If the process is gone.
pub fn growth<T>(pid: u32, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, u64)> {
    let before = memory(pid)?.anonymous;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut peak = before;
            while !done.load(Ordering::Acquire) {
                peak = peak.max(memory(pid).map_or(0, |memory| memory.anonymous));
                pause(MEMORY_EVERY);
            }
            peak
        });
        let outcome = {
            let _end = TellAtEnd(&done);
            work()
        };
        let peak = watcher.join().expect("reading a file does not panic");
        Ok((outcome?, peak - before))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Process, Window, device_written, memory, system_ticks};

    #[test]
    fn process_with_spaces_in_its_name_is_read() {
        let text = "7 (a b) c) S 1 7 7 0 -1 4194560 1 2 3 4 10 20 300 4000 20 0 1 0 5 6 7";
        let process = Process::parse(text).unwrap();
        assert_eq!(process, Process { kernel: false, ticks: 30, family_ticks: 4330 });
    }

    #[test]
    fn system_s_line_gives_busy_and_stolen() {
        let stat = "cpu  1 2 4 1000 500 8 16 32 0 0\ncpu0 1 1 1 1 1 1 1 1\n";
        assert_eq!(system_ticks(stat).unwrap(), (31, 32));
    }

    #[test]
    fn sectors_are_of_the_device_asked_for() {
        let text = " 254 0 vda 1 2 3 4 5 6 700 8\n 254 1 vda1 1 2 3 4 5 6 9 8\n";
        assert_eq!(device_written(text, (254, 1)), 9 * 512);
        assert_eq!(device_written(text, (9, 9)), 0, "a file system without a device");
    }

    #[test]
    fn window_over_ourselves_sees_our_own_work() {
        let window = Window::open(vec![std::process::id()], &std::env::temp_dir()).unwrap();
        let mut sum = 0_u64;
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_millis(60) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let cost = window.close().unwrap();
        assert!(Duration::from_millis(60) <= cost.elapsed, "{cost:?}");
        assert!(Duration::ZERO < cost.server, "{cost:?}");
        assert!(0 < memory(std::process::id()).unwrap().anonymous);
    }
}
