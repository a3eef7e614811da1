//! Newtypes for every identifier and position that crosses a module boundary.
//!
//! Decides only how they print: members and clusters as etcd prints them, in lower-case
//! hexadecimal without padding. Used everywhere.

use std::fmt;

macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident($inner:ty), $format:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }
    };
}

newtype!(
    /// A member of a cluster; 0 is nobody.
    MemberId(u64), "{:x}"
);
newtype!(
    /// A cluster; decided once, at bootstrap.
    ClusterId(u64), "{:x}"
);
newtype!(
    /// A lease; 0 is none. Clients may choose negative ones.
    LeaseId(i64), "{:x}"
);
newtype!(
    /// A proposed request, unique among the members and restarts of a cluster.
    RequestId(u64), "{:x}"
);
newtype!(
    /// A position in the raft log. The first entry has 1; 0 is before it.
    LogIndex(u64), "{}"
);
newtype!(
    /// A raft term. The first election makes 1 (a bootstrapped group: 2).
    Term(u64), "{}"
);
newtype!(
    /// A revision of the key space. An empty store has 1; -1 stands for "never compacted".
    Revision(i64), "{}"
);

impl LogIndex {
    /// The position after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Revision {
    /// The revision after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
