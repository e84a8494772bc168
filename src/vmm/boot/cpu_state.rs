//! The state in which the first vCPU starts, as plain data.
//!
//! The other vCPUs wait for INIT and SIPI from the guest and need none of this.

use kvm_bindings::{kvm_dtable, kvm_fpu, kvm_lapic_state, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::GuestMemoryMmap;

use super::{BootError, EntryPoint, Protocol, write};
use crate::layout;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The bit of RFLAGS that is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// Selectors that the Linux boot protocol prescribes.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const BOOT_TR: u16 = 0x20;
const GDT_ENTRIES: usize = 6;

/// Access byte and flags of a descriptor, bits 40–47 and 52–55, as `flags << 12 | access`.
const CODE_64: u16 = 0xa09b;
const CODE_32: u16 = 0xc09b;
const DATA: u16 = 0xc093;
/// A busy TSS: VMX refuses to run without one.
const TSS: u16 = 0x008b;
const TSS_LIMIT: u32 = 0x67;
const FLAT_LIMIT: u32 = 0xf_ffff;

/// Registers of the first vCPU.
#[derive(Debug, Clone, PartialEq)]
pub struct BootCpu {
    regs: kvm_regs,
    code: kvm_segment,
    data: kvm_segment,
    task: kvm_segment,
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
}

impl BootCpu {
    /// For KVM_SET_REGS.
    pub fn regs(&self) -> kvm_regs {
        self.regs
    }

    /// Changes what KVM_GET_SREGS returned into what KVM_SET_SREGS should get; the local APIC's base
    /// and pending interrupts stay as they are.
    pub fn apply(&self, sregs: &mut kvm_sregs) {
        sregs.cs = self.code;
        sregs.tr = self.task;
        for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
            *segment = self.data;
        }
        let table = |base, limit| kvm_dtable { base, limit, padding: [0; 3] };
        sregs.gdt = table(layout::BOOT_GDT, (GDT_ENTRIES * 8 - 1) as u16);
        sregs.idt = table(layout::BOOT_IDT, 7);
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (self.cr0, self.cr3, self.cr4, self.efer);
    }
}

/// Writes GDT, IDT and, for [`Protocol::Linux64`], page tables; returns the registers.
pub fn boot_cpu(mem: &GuestMemoryMmap, entry: &EntryPoint) -> Result<BootCpu, BootError> {
    let code_flags = match entry.protocol {
        Protocol::Linux64 => CODE_64,
        Protocol::Pvh => CODE_32,
    };
    let (code, data, task) =
        (Descriptor::flat(code_flags), Descriptor::flat(DATA), Descriptor { flags: TSS, limit: TSS_LIMIT });
    // A 64-bit TSS takes two entries, the second one zero for a base of zero.
    let gdt = [0, 0, code.encode(), data.encode(), task.encode(), 0];
    let bytes: Vec<u8> = gdt.iter().flat_map(|entry: &u64| entry.to_le_bytes()).collect();
    write(mem, "GDT", &bytes, layout::BOOT_GDT)?;
    write(mem, "IDT", &[0; 8], layout::BOOT_IDT)?;

    let mut regs = kvm_regs {
        rip: entry.rip,
        rsp: layout::BOOT_STACK,
        rbp: layout::BOOT_STACK,
        rflags: RFLAGS_RESERVED,
        ..kvm_regs::default()
    };
    let mut cpu = BootCpu {
        regs,
        code: code.segment(BOOT_CS),
        data: data.segment(BOOT_DS),
        task: task.segment(BOOT_TR),
        cr0: CR0_PE | CR0_ET,
        cr3: 0,
        cr4: 0,
        efer: 0,
    };
    match entry.protocol {
        Protocol::Linux64 => {
            write_page_tables(mem)?;
            regs.rsi = layout::ZERO_PAGE;
            cpu.cr0 |= CR0_NE | CR0_PG;
            cpu.cr3 = layout::BOOT_PAGE_TABLES;
            cpu.cr4 = CR4_PAE;
            cpu.efer = EFER_LME | EFER_LMA;
        }
        Protocol::Pvh => regs.rbx = layout::PVH_START_INFO,
    }
    cpu.regs = regs;
    Ok(cpu)
}

/// FPU and SSE control words after reset of a system that uses them, for KVM_SET_FPU.
pub fn boot_fpu() -> kvm_fpu {
    kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..kvm_fpu::default() }
}

/// Sets LINT0 to ExtINT and LINT1 to NMI, as firmware leaves them (MP specification 1.4 §3.6.2.1).
pub fn set_local_interrupts(lapic: &mut kvm_lapic_state) {
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const MODE_NMI: u8 = 4;
    const MODE_EXTINT: u8 = 7;
    /// Delivery mode is bits 8–10: the low three of the second byte.
    const MODE_MASK: u8 = 7;
    for (register, mode) in [(LVT_LINT0, MODE_EXTINT), (LVT_LINT1, MODE_NMI)] {
        let byte = &mut lapic.regs[register + 1];
        *byte = (((*byte).cast_unsigned() & !MODE_MASK) | mode).cast_signed();
    }
}

/// A segment with base 0.
#[derive(Clone, Copy)]
struct Descriptor {
    flags: u16,
    limit: u32,
}

impl Descriptor {
    fn flat(flags: u16) -> Self {
        Descriptor { flags, limit: FLAT_LIMIT }
    }

    /// As it stands in a GDT.
    fn encode(self) -> u64 {
        let (flags, limit) = (u64::from(self.flags), u64::from(self.limit));
        (flags & 0xf000) << 40 | (limit & 0xf_0000) << 32 | (flags & 0xff) << 40 | limit & 0xffff
    }

    /// As the vCPU caches it.
    fn segment(self, selector: u16) -> kvm_segment {
        let bit = |at: u16| (self.flags >> at & 1) as u8;
        let granular = bit(15) == 1;
        kvm_segment {
            base: 0,
            limit: if granular { self.limit << 12 | 0xfff } else { self.limit },
            selector,
            type_: (self.flags & 0xf) as u8,
            s: bit(4),
            dpl: (self.flags >> 5 & 3) as u8,
            present: bit(7),
            avl: bit(12),
            l: bit(13),
            db: bit(14),
            g: bit(15),
            unusable: 0,
            padding: 0,
        }
    }
}

/// Maps the first 4 GiB to themselves in pages of 2 MiB, which every 64-bit processor has.
fn write_page_tables(mem: &GuestMemoryMmap) -> Result<(), BootError> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    const TABLE_LEN: u64 = 4096;
    const ENTRIES: u64 = 512;
    const GIBIBYTES: u64 = 4;
    let pml4 = layout::BOOT_PAGE_TABLES;
    let pdpt = pml4 + TABLE_LEN;
    let directories = pdpt + TABLE_LEN;
    let put = |entries: &mut dyn Iterator<Item = u64>, address| {
        let bytes: Vec<u8> = entries.flat_map(u64::to_le_bytes).collect();
        write(mem, "page tables", &bytes, address)
    };
    put(&mut std::iter::once(pdpt | PRESENT_WRITABLE), pml4)?;
    put(&mut (0..GIBIBYTES).map(|n| (directories + n * TABLE_LEN) | PRESENT_WRITABLE), pdpt)?;
    put(&mut (0..GIBIBYTES * ENTRIES).map(|n| n << 21 | PRESENT_WRITABLE | LARGE), directories)
}
