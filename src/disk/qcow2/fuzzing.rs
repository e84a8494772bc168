//! Entry points that fuzz targets and property tests share. Each takes any bytes and must return.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "test support: failing is its way to report"
)]

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::VolatileSlice;

use crate::{Disk, DiskError, Format, Layer, create_overlay, open};

/// Opens an image and uses it. The image is `data` itself, or a sound overlay with words replaced
/// as `data` says: 8 bytes of place and 8 of value each.
pub fn qcow2_open(data: &[u8]) {
    let (&[kind], data) = data.split_first_chunk().unwrap_or((&[0], &[]));
    let file = || File::from(memfd_create(c"image", MFdFlags::MFD_CLOEXEC).unwrap());
    for read_only in [true, false] {
        let image = file();
        if kind & 1 == 0 {
            image.write_all_at(data, 0).unwrap();
            image.set_len((data.len() as u64).max(u64::from(kind) << 12)).unwrap();
        } else {
            create_overlay(image.try_clone().unwrap(), 4 << 20, None).unwrap();
            let disk = open(vec![Layer { file: image.try_clone().unwrap(), format: Format::Qcow2 }], false);
            let _ = write(&*disk.unwrap(), 100_000, 8192);
            for change in data.chunks_exact(16) {
                let word =
                    |at| change.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; 8]);
                // The image has eight clusters; most of it is empty.
                let place = u64::from_le_bytes(word(0));
                let place = ((place % 8) << 17) + (place >> 3) % if place % 8 == 0 { 128 } else { 512 };
                image.write_all_at(&word(8), place).unwrap();
            }
        }
        // Data may be mapped anywhere, but memory is not for free.
        if let Ok(disk) = open(vec![Layer { file: image, format: Format::Qcow2 }], read_only) {
            exercise(&*disk);
        }
    }
}

fn write(disk: &dyn Disk, offset: u64, len: u64) -> Result<(), DiskError> {
    disk.write_at(&[VolatileSlice::from(&mut vec![0x5a; len as usize][..])], offset)
}

/// Reads and changes a little everywhere.
pub(super) fn exercise(disk: &dyn Disk) {
    let size = disk.size();
    for at in [0, 4096, 65536, 100_352, size / 2, size.saturating_sub(4096)] {
        let at = at / 512 * 512;
        let len = 4096.min(size.saturating_sub(at));
        let _ = disk.read_exact_at(&mut vec![0; len as usize], at);
        let _ = disk.extent(at, len, false);
        let _ = write(disk, at, len);
        let _ = disk.write_zeroes(at, len, true);
        if let Some(prepared) = disk.prepare_write(at, len) {
            disk.finish_write(prepared, true);
        }
        let _ = disk.extent(at, len, true);
    }
    let _ = disk.flush();
}
