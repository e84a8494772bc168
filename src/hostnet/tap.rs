//! Making a tap in the calling thread's network namespace.
#![expect(unsafe_code, reason = "ioctls of the tun driver")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;

use crate::error::HostNetError;

/// The device that taps are made with.
pub(crate) const TUN_DEVICE: &str = "/dev/net/tun";

/// Length of the virtio-net header before each frame since virtio 1.0.
static VNET_HEADER_LEN: libc::c_int = 12;

const TUN_F_CSUM: u64 = 0x01;
const TUN_F_TSO4: u64 = 0x02;
const TUN_F_TSO6: u64 = 0x04;
const TUN_F_TSO_ECN: u64 = 0x08;
const TUN_F_USO4: u64 = 0x20;
const TUN_F_USO6: u64 = 0x40;

nix::ioctl_write_ptr_bad!(tunsetiff, nix::request_code_write!(b'T', 202, 4), libc::ifreq);
nix::ioctl_write_int_bad!(tunsetoffload, nix::request_code_write!(b'T', 208, 4));
nix::ioctl_write_ptr!(tunsetvnethdrsz, b'T', 216, libc::c_int);

/// Makes the tap `name` with `queues` open queues, each non-blocking and closed on exec. It is not
/// persistent: when the last descriptor is closed, wherever it has been passed to, the tap is gone.
pub(crate) fn create(name: &str, queues: u16) -> Result<Vec<OwnedFd>, HostNetError> {
    let failed = |action| {
        let tap = name.to_owned();
        move |source| HostNetError::Tap { action, tap, source }
    };
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if queues > 1 {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let request = request(name, flags).map_err(failed("naming tap"))?;
    let mut fds = Vec::new();
    for _ in 0..queues {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(TUN_DEVICE)
            .map_err(failed("opening /dev/net/tun for"))?;
        // SAFETY: TUNSETIFF reads one `struct ifreq`, and `request` is one.
        match unsafe { tunsetiff(file.as_raw_fd(), &raw const request) } {
            Ok(_) => {}
            Err(nix::Error::EBUSY) => return Err(HostNetError::InUse(name.to_owned())),
            Err(error) => return Err(failed("making tap")(error.into())),
        }
        // SAFETY: TUNSETVNETHDRSZ reads one int, and the constant is one.
        unsafe { tunsetvnethdrsz(file.as_raw_fd(), &raw const VNET_HEADER_LEN) }
            .map_err(|e| failed("setting the header length of")(e.into()))?;
        set_offloads(&file).map_err(failed("setting the offloads of"))?;
        fds.push(OwnedFd::from(file));
    }
    Ok(fds)
}

/// Everything that this kernel's tap can do, so that a VMM that may no longer ask still works with
/// guests that take it all.
fn set_offloads(file: &File) -> io::Result<()> {
    let basic = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    // UDP segmentation: since Linux 6.2.
    match offload(file.as_raw_fd(), basic | TUN_F_USO4 | TUN_F_USO6) {
        Err(nix::Error::EINVAL) => Ok(offload(file.as_raw_fd(), basic)?),
        result => Ok(result?),
    }
}

fn offload(fd: RawFd, flags: u64) -> nix::Result<()> {
    let flags = libc::c_int::try_from(flags).map_err(|_| nix::Error::EINVAL)?;
    // SAFETY: TUNSETOFFLOAD takes its argument by value; fd is open as its owner is borrowed.
    unsafe { tunsetoffload(fd, flags) }.map(drop)
}

fn request(name: &str, flags: libc::c_int) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is plain data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() || name.is_empty() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::try_from(from).map_err(|_| io::ErrorKind::InvalidInput)?;
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(request)
}
