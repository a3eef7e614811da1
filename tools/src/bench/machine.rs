//! The machine a report was made on, in general words.
//!
//! Decides what of it a reader needs to judge the figures: processors, memory, kernel, file system.
//! Names of hosts, users and paths stay out.

use std::{fs, path::Path, time::SystemTime};

/// What a reader has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Model of the processors.
    pub processor: String,
    /// How many there are.
    pub processors: usize,
    /// Memory in GiB, rounded.
    pub memory_gib: u64,
    /// Name and release of the kernel.
    pub kernel: String,
    /// Type of the file system that holds the data directories.
    pub file_system: String,
}

impl Machine {
    /// Looks at this machine; data directories are in `dir`. What cannot be found out is
    /// `unknown`.
    #[must_use]
    pub fn look(dir: &Path) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let kib: u64 = value_of(&meminfo, "MemTotal")
            .and_then(|text| text.split_whitespace().next()?.parse().ok())
            .unwrap_or_default();
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        // Only the numbers of a release: a build's own suffix says where it was built.
        let release = release.split('-').next().unwrap_or_default().to_owned();
        let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_path_buf());
        Self {
            processor: value_of(&cpuinfo, "model name").unwrap_or("unknown").to_owned(),
            processors: std::thread::available_parallelism().map_or(0, Into::into),
            memory_gib: (kib + (1 << 19)) >> 20,
            kernel: format!("Linux {release}"),
            file_system: file_system(&mounts, &dir).unwrap_or("unknown").to_owned(),
        }
    }
}

fn value_of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim())
}

/// The type of the file system with the longest mount point above `dir`.
fn file_system<'a>(mounts: &'a str, dir: &Path) -> Option<&'a str> {
    let points = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        Some((words.next()?, words.next()?))
    });
    points
        .filter(|(point, _)| dir.starts_with(point))
        .max_by_key(|(point, _)| point.len())
        .map(|one| one.1)
}

/// Today as `2026-01-31`, in UTC.
#[must_use]
pub fn today() -> String {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let days = seconds.map_or(0, |since| since.as_secs() / 86_400);
    let (year, month, day) = civil(days);
    format!("{year}-{month:02}-{day:02}")
}

/// Year, month and day of a number of days since 1970 in the Gregorian calendar.
const fn civil(days: u64) -> (u64, u64, u64) {
    // Years begin in March here, so that the leap day is the last of its year.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{civil, file_system};

    #[test]
    fn days_are_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_454), (2026, 1, 1));
    }

    #[test]
    fn file_system_is_that_of_the_nearest_mount() {
        let mounts = "a / ext4 rw 0 0\nb /tmp tmpfs rw 0 0\n";
        assert_eq!(file_system(mounts, Path::new("/tmp/x")), Some("tmpfs"));
        assert_eq!(file_system(mounts, Path::new("/tmpx")), Some("ext4"));
    }
}
