//! Whether the host can run a machine.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Environment variable that lets machines run on software KVM, for test guests that are made for it.
const ALLOW_SOFTWARE: &str = "KILN_ALLOW_SOFTWARE_KVM";

/// What is behind `/dev/kvm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvmKind {
    /// Virtualization extensions of the processor, by this module.
    Hardware {
        /// `kvm_intel` or `kvm_amd`.
        module: &'static str,
    },
    /// Anything else. Kernel-mode code of the guest is emulated instruction by instruction.
    Software {
        /// Names of modules that look like the implementation.
        modules: Vec<String>,
    },
}

/// Why no machine can run.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// There is no such device.
    #[error(
        "/dev/kvm is missing, so no machine can run (load kvm_intel or kvm_amd, enable virtualization in the \
         firmware, or use scripts/lab)"
    )]
    Missing,
    /// The device is there but not for us.
    #[error("/dev/kvm cannot be opened (run as root, or join the group that owns it)")]
    Refused(#[source] io::Error),
    /// Software KVM.
    #[error(
        "/dev/kvm is software KVM ({}) and cannot run stock kernels (run this in the lab instead: scripts/lab)",
        if modules.is_empty() { "no kvm_intel or kvm_amd".to_owned() } else { modules.join(", ") }
    )]
    Software {
        /// See [`KvmKind::Software`].
        modules: Vec<String>,
    },
}

/// Opens `/dev/kvm`; refuses one that cannot run a stock kernel.
pub fn open_kvm() -> Result<OwnedFd, KvmError> {
    match probe(Path::new("/dev/kvm"), Path::new("/sys/module"))? {
        (_, KvmKind::Software { modules }) if std::env::var_os(ALLOW_SOFTWARE).is_none() => {
            Err(KvmError::Software { modules })
        }
        (file, _) => Ok(file.into()),
    }
}

pub(super) fn probe(device: &Path, modules: &Path) -> Result<(File, KvmKind), KvmError> {
    let file = match OpenOptions::new().read(true).write(true).open(device) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(KvmError::Missing),
        // The node is there but nothing is behind it.
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => {
            return Err(KvmError::Missing);
        }
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => {
            return Err(KvmError::Missing);
        }
        Err(e) => return Err(KvmError::Refused(e)),
        Ok(file) => file,
    };
    // Both have parameters, so the directory is there even where they are built into the kernel.
    if let Some(module) = ["kvm_intel", "kvm_amd"].into_iter().find(|name| modules.join(name).is_dir()) {
        return Ok((file, KvmKind::Hardware { module }));
    }
    let names = fs::read_dir(modules).into_iter().flatten().filter_map(Result::ok);
    let mut modules: Vec<_> = names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("kvm_"))
        .collect();
    modules.sort();
    Ok((file, KvmKind::Software { modules }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_directory_tells_hardware_from_software() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("kvm");
        let modules = dir.path().join("module");
        fs::create_dir_all(modules.join("kvm_pvm")).unwrap();
        fs::create_dir_all(modules.join("kvm")).unwrap();
        assert!(matches!(probe(&device, &modules), Err(KvmError::Missing)));
        fs::write(&device, "").unwrap();
        assert_eq!(
            probe(&device, &modules).unwrap().1,
            KvmKind::Software { modules: vec!["kvm_pvm".into()] }
        );
        fs::create_dir(modules.join("kvm_amd")).unwrap();
        assert_eq!(probe(&device, &modules).unwrap().1, KvmKind::Hardware { module: "kvm_amd" });
    }

    #[test]
    fn refusal_names_cause_and_remedy_in_one_line() {
        let text = KvmError::Software { modules: vec!["kvm_pvm".into()] }.to_string();
        assert!(text.contains("kvm_pvm") && text.contains("scripts/lab") && !text.contains('\n'), "{text}");
    }
}
