//! Disks of the host, as control groups name them.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::{fmt, fs, io};

/// A whole disk, by its device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockDevice {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

impl BlockDevice {
    /// The disk that the file system of `path` is on, or the block device at `path`; of a partition its
    /// disk, as the kernel limits whole disks alone. `None` where there is no such single device: a file
    /// system in memory, over the network, or on several.
    pub fn under(path: &Path) -> Option<Self> {
        Self::find(path).ok()
    }

    fn find(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        let number = if metadata.rdev() == 0 { metadata.dev() } else { metadata.rdev() };
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        let entry = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}"))?;
        if !entry.join("partition").exists() {
            return Ok(BlockDevice { major, minor });
        }
        let disk = entry.parent().ok_or(io::ErrorKind::NotFound)?;
        fs::read_to_string(disk.join("dev"))?.parse()
    }
}

impl std::str::FromStr for BlockDevice {
    type Err = io::Error;

    /// `MAJOR:MINOR`, as in /sys.
    fn from_str(text: &str) -> io::Result<Self> {
        let (major, minor) = text.trim().split_once(':').ok_or(io::ErrorKind::InvalidData)?;
        let number = |text: &str| text.parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
        Ok(BlockDevice { major: number(major)?, minor: number(minor)? })
    }
}

impl fmt::Display for BlockDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_system_in_memory_is_on_no_disk() {
        assert_eq!(BlockDevice::under(Path::new("/proc")), None);
        assert_eq!(BlockDevice::under(Path::new("/does/not/exist")), None);
    }

    #[test]
    fn disk_of_every_partition_is_what_the_kernel_lists() {
        for entry in fs::read_dir("/sys/class/block").unwrap() {
            let entry = fs::canonicalize(entry.unwrap().path()).unwrap();
            let node = Path::new("/dev").join(entry.file_name().unwrap());
            let disk = if entry.join("partition").exists() { entry.parent().unwrap() } else { &entry };
            if node.exists() {
                let wanted = fs::read_to_string(disk.join("dev")).unwrap().parse().unwrap();
                assert_eq!(BlockDevice::under(&node), Some(wanted), "{}", node.display());
            }
        }
    }

    #[test]
    fn number_reads_as_it_is_written() {
        let device: BlockDevice = "254:17\n".parse().unwrap();
        assert_eq!(device.to_string(), "254:17");
        assert!("254".parse::<BlockDevice>().is_err() && "a:b".parse::<BlockDevice>().is_err());
    }
}
