//! One queue of a tap: frames in and out with a 12-byte virtio-net header before each.
#![expect(unsafe_code, reason = "readv and writev on guest memory and ioctls of the tun driver")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_devices::virtio::net::{HEADER_LEN, Offloads};
use smallvec::SmallVec;
use vm_memory::VolatileSlice;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};
use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr};

const TUN: u32 = b'T' as u32;
ioctl_iow_nr!(TUNSETOFFLOAD, TUN, 208, libc::c_uint);
ioctl_ior_nr!(TUNGETIFF, TUN, 210, libc::c_uint);
ioctl_ior_nr!(TUNGETVNETHDRSZ, TUN, 215, libc::c_int);
ioctl_iow_nr!(TUNSETQUEUE, TUN, 217, libc::c_int);

const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_TSO4: libc::c_ulong = 0x02;
const TUN_F_TSO6: libc::c_ulong = 0x04;
const TUN_F_TSO_ECN: libc::c_ulong = 0x08;
const TUN_F_USO4: libc::c_ulong = 0x20;
const TUN_F_USO6: libc::c_ulong = 0x40;

const IFF_TAP: u16 = 0x0002;
const IFF_ATTACH_QUEUE: u16 = 0x0200;
const IFF_DETACH_QUEUE: u16 = 0x0400;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// `struct ifreq` as far as the tun driver uses it: name, flags, padding.
#[repr(C)]
struct IfReq {
    name: [u8; 16],
    flags: u16,
    padding: [u8; 22],
}

/// `struct ifreq` of the kernel is 40 bytes on x86_64.
const _: () = assert!(std::mem::size_of::<IfReq>() == 40);

/// A descriptor that cannot serve as a tap queue, or a host that cannot serve an interface.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// Not a tun device, or one that refuses to be asked.
    #[error("descriptor is not a queue of a tap")]
    NotATap(#[source] io::Error),
    /// A tap of another kind.
    #[error(
        "tap has flags {flags:#06x} and a header of {header} bytes; needed are IFF_TAP, IFF_NO_PI, IFF_VNET_HDR and {HEADER_LEN}"
    )]
    WrongKind {
        /// Flags of `TUNGETIFF`.
        flags: u16,
        /// Length of `TUNGETVNETHDRSZ`.
        header: i32,
    },
}

/// An open tap queue.
#[derive(Debug)]
pub struct TapQueue {
    fd: OwnedFd,
    name: String,
    /// The kernel steers frames here.
    attached: AtomicBool,
    /// The interface was deleted.
    gone: AtomicBool,
}

/// What a read or write came to.
#[derive(Debug)]
pub(super) enum Io {
    /// That many bytes, header included.
    Done(usize),
    /// Not now.
    WouldBlock,
    /// The frame is lost.
    Refused,
}

impl TapQueue {
    /// Takes over a queue that the privileged side has opened and attached, and makes it
    /// non-blocking. Asks what it is, which a confined thread may not.
    pub fn new(fd: OwnedFd) -> Result<Self, NicError> {
        let mut request = IfReq { name: [0; 16], flags: 0, padding: [0; 22] };
        // SAFETY: TUNGETIFF writes one `struct ifreq`, whose size and layout `IfReq` has.
        let result = unsafe { ioctl_with_mut_ref(&fd, TUNGETIFF(), &mut request) };
        checked(result).map_err(NicError::NotATap)?;
        let mut header: libc::c_int = 0;
        // SAFETY: TUNGETVNETHDRSZ writes one int.
        let result = unsafe { ioctl_with_mut_ref(&fd, TUNGETVNETHDRSZ(), &mut header) };
        checked(result).map_err(NicError::NotATap)?;
        let needed = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        if request.flags & needed != needed || usize::try_from(header) != Ok(HEADER_LEN) {
            return Err(NicError::WrongKind { flags: request.flags, header });
        }
        let name = request.name.split(|byte| *byte == 0).next().unwrap_or_default();
        Self::adopt(fd, &String::from_utf8_lossy(name))
    }

    /// The same on a confined thread, which knows a tap by what it lets be set. `name` is for logs.
    pub fn adopt(fd: OwnedFd, name: &str) -> Result<Self, NicError> {
        set_nonblocking(&fd).map_err(NicError::NotATap)?;
        let (attached, gone) = (AtomicBool::new(true), AtomicBool::new(false));
        let queue = TapQueue { fd, name: name.to_owned(), attached, gone };
        queue.set_offloads(Offloads::empty()).map_err(NicError::NotATap)?;
        Ok(queue)
    }

    /// Tells the kernel which offloads frames to the guest may need. It holds for all queues.
    pub(super) fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let table = [
            (Offloads::CSUM, TUN_F_CSUM),
            (Offloads::TSO4, TUN_F_TSO4),
            (Offloads::TSO6, TUN_F_TSO6),
            (Offloads::ECN, TUN_F_TSO_ECN),
            (Offloads::USO, TUN_F_USO4 | TUN_F_USO6),
        ];
        let flags = table
            .into_iter()
            .filter(|(offload, _)| offloads.contains(*offload))
            .fold(0, |set, (_, f)| set | f);
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        checked(unsafe { ioctl_with_val(&self.fd, TUNSETOFFLOAD(), flags) })
    }

    /// Puts the queue into or out of use. Only for taps with several queues.
    pub(super) fn set_attached(&self, attached: bool) -> io::Result<()> {
        if self.attached.load(Ordering::Acquire) == attached {
            return Ok(());
        }
        let flags = if attached { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE };
        let request = IfReq { name: [0; 16], flags, padding: [0; 22] };
        if !attached {
            // Before the kernel does it, so that a worker does not take the error for the end.
            self.attached.store(false, Ordering::Release);
        }
        // SAFETY: TUNSETQUEUE reads one `struct ifreq`, whose size and layout `IfReq` has.
        let result = checked(unsafe { ioctl_with_ref(&self.fd, TUNSETQUEUE(), &request) });
        match result {
            Ok(()) => self.attached.store(attached, Ordering::Release),
            Err(_) => self.attached.store(!attached, Ordering::Release),
        }
        result
    }

    /// The descriptor to wait on, while frames can come from it.
    pub(super) fn readable_fd(&self) -> Option<RawFd> {
        let usable = self.attached.load(Ordering::Acquire) && !self.gone();
        usable.then(|| self.fd.as_raw_fd())
    }

    /// Whether the interface was deleted.
    pub(super) fn gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Sends `copy` (header and start of the frame) followed by `rest`.
    pub(super) fn write(&self, copy: &[u8], rest: &[VolatileSlice<'_>]) -> Io {
        let mut iovecs: SmallVec<[libc::iovec; 24]> = SmallVec::new();
        iovecs.push(libc::iovec { iov_base: copy.as_ptr().cast_mut().cast(), iov_len: copy.len() });
        iovecs.extend(rest.iter().map(|slice| libc::iovec {
            iov_base: slice.ptr_guard().as_ptr().cast_mut().cast(),
            iov_len: slice.len(),
        }));
        let Ok(count) = libc::c_int::try_from(iovecs.len()) else { return Io::Refused };
        // SAFETY: every iovec names memory that `copy` or a `VolatileSlice` of `rest` keeps mapped
        // for the call, and the kernel only reads it. Guest memory may change meanwhile; the kernel
        // copies it.
        let result = unsafe { libc::writev(self.fd.as_raw_fd(), iovecs.as_ptr(), count) };
        self.outcome(result, "write")
    }

    /// Reads one frame: its header into `header`, the rest into `bufs`.
    pub(super) fn read(&self, header: &mut [u8; HEADER_LEN], bufs: &[VolatileSlice<'_>]) -> Io {
        let mut iovecs: SmallVec<[libc::iovec; 52]> = SmallVec::new();
        iovecs.push(libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: header.len() });
        iovecs.extend(bufs.iter().map(|slice| libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        }));
        let Ok(count) = libc::c_int::try_from(iovecs.len()) else { return Io::Refused };
        // SAFETY: every iovec names memory that `header` or a `VolatileSlice` of `bufs` keeps mapped
        // and writable for the call. No reference to the memory of `bufs` exists: it is only ever
        // reached by volatile access.
        let result = unsafe { libc::readv(self.fd.as_raw_fd(), iovecs.as_ptr(), count) };
        self.outcome(result, "read")
    }

    fn outcome(&self, result: libc::ssize_t, action: &'static str) -> Io {
        if let Ok(bytes) = usize::try_from(result) {
            return Io::Done(bytes);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // EINTR: nothing was moved; level-triggered readiness or the next frame tries again.
            Some(libc::EAGAIN | libc::EINTR) => Io::WouldBlock,
            // EINVAL: a header that the kernel does not like. EIO: the interface is down. The others
            // pass when memory is free again.
            Some(libc::EINVAL | libc::EIO | libc::ENOMEM | libc::ENOBUFS | libc::EMSGSIZE) => Io::Refused,
            _ => {
                if self.attached.load(Ordering::Acquire) && !self.gone.swap(true, Ordering::AcqRel) {
                    tracing::error!(tap = %self.name, action, %error, "tap is gone; the guest is cut off");
                }
                Io::Refused
            }
        }
    }
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: FIONBIO reads one int.
    checked(unsafe { ioctl_with_ref(fd, libc::FIONBIO, &on) })
}
