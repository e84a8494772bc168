//! Kernel settings of the calling thread's network namespace.

use std::fs;

use crate::error::HostNetError;

/// Writes `value` to `/proc/sys/net/{name}`. The file is opened afresh: whose setting it is depends
/// on the thread that opens it.
pub(crate) fn set(name: &str, value: &str) -> Result<(), HostNetError> {
    let path = format!("/proc/sys/net/{name}");
    fs::write(&path, value).map_err(|source| HostNetError::Sysctl { path, source })
}

/// As [`set`], for a setting that not every kernel has.
pub(crate) fn set_if_there(name: &str, value: &str) -> Result<(), HostNetError> {
    match set(name, value) {
        Err(HostNetError::Sysctl { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Reads a setting.
pub(crate) fn get(name: &str) -> Result<String, HostNetError> {
    let path = format!("/proc/sys/net/{name}");
    match fs::read_to_string(&path) {
        Ok(value) => Ok(value.trim().to_owned()),
        Err(source) => Err(HostNetError::Sysctl { path, source }),
    }
}
