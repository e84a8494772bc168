//! Guest-physical memory map and fixed I/O ports. Firmware tables and devices agree through this
//! file alone.
//!
//! ```text
//!  0                     EBDA  SMBIOS/ACPI  1 MiB                  3 GiB       3.5 GiB        4 GiB
//!  ├ boot params, page tables ┤ ├──────────┤ ├ kernel, initrd, RAM ┤ PCI 32-bit ┤ ECAM · APICs ┤ RAM …, PCI 64-bit
//! ```

/// End of low RAM at most: the PCI hole starts here.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// High RAM starts here.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

/// 32-bit window for PCI memory BARs.
pub const PCI_MMIO32_START: u64 = 0xc000_0000;
/// Its size in bytes.
pub const PCI_MMIO32_SIZE: u64 = 0x2000_0000;
/// PCI Express enhanced configuration space, bus 0 only.
pub const ECAM_START: u64 = 0xe000_0000;
/// One bus of 256 functions of 4 KiB.
pub const ECAM_SIZE: u64 = 0x10_0000;
/// I/O APIC registers.
pub const IOAPIC_START: u64 = 0xfec0_0000;
/// Local APIC registers.
pub const LAPIC_START: u64 = 0xfee0_0000;
/// Page for KVM's identity map (Intel without unrestricted guest).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages for KVM's task state segment.
pub const KVM_TSS: u64 = 0xfffb_d000;

/// GDT of the boot vCPU.
pub const BOOT_GDT: u64 = 0x500;
/// Empty IDT of the boot vCPU.
pub const BOOT_IDT: u64 = 0x540;
/// Linux `setup_data` with the seed of the guest's random number generator.
pub const SETUP_DATA: u64 = 0x5000;
/// PVH `hvm_start_info`, module list and memory map.
pub const PVH_START_INFO: u64 = 0x6000;
/// Linux `boot_params` ("zero page").
pub const ZERO_PAGE: u64 = 0x7000;
/// Stack of the boot vCPU, growing down.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Identity page tables of the boot vCPU: PML4, PDPT, four page directories.
pub const BOOT_PAGE_TABLES: u64 = 0x9000;
/// Kernel command line.
pub const CMDLINE_START: u64 = 0x2_0000;
/// Longest command line with its terminating zero (Linux x86 `COMMAND_LINE_SIZE`).
pub const CMDLINE_MAX: usize = 2048;
/// Usable low memory ends here (extended BIOS data area, reserved).
pub const EBDA_START: u64 = 0x9_fc00;
/// SMBIOS entry point: in 0xf0000..0x100000, where Linux looks without EFI.
pub const SMBIOS_ENTRY: u64 = 0xf_0000;
/// SMBIOS structures follow the entry point.
pub const SMBIOS_TABLES: u64 = 0xf_0020;
/// ACPI tables and the RSDP, in the area that Linux scans.
pub const ACPI_START: u64 = 0xe_0000;
/// End of the ACPI area.
pub const ACPI_END: u64 = 0xf_0000;
/// Where real-mode software goes for a restart: `f000:fff0`.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// Where protected-mode kernels go.
pub const HIMEM_START: u64 = 0x10_0000;

/// First serial port.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Its interrupt (GSI).
pub const SERIAL_IRQ: u32 = 4;
/// CMOS index and data ports.
pub const RTC_PORT: u16 = 0x70;
/// PCI configuration address and data ports.
pub const PCI_CONFIG_PORT: u16 = 0xcf8;
/// Power control block: see `kiln_devices::power` for its registers.
pub const POWER_PORT: u16 = 0x600;
pub use kiln_devices::power::{
    EVENT_GENERATION_ID, EVENT_HOTPLUG, EVENT_POWER_BUTTON, EVENTS as POWER_EVENTS,
    POWER_PORTS as POWER_PORT_LEN, RESET as POWER_RESET, RESET_VALUE as POWER_RESET_VALUE, S5_SLEEP_TYPE,
    SLEEP_CONTROL as POWER_SLEEP_CONTROL, SLEEP_STATUS as POWER_SLEEP_STATUS,
};
/// Hot-plug registers: see `kiln_devices::pci::hotplug`.
pub const HOTPLUG_PORT: u16 = 0x620;
pub use kiln_devices::pci::hotplug::{
    ARRIVED as HOTPLUG_ARRIVED, EJECT as HOTPLUG_EJECT, HOTPLUG_PORTS as HOTPLUG_PORT_LEN,
    LEAVING as HOTPLUG_LEAVING,
};
/// Interrupt (GSI) of the generic event device.
pub const POWER_IRQ: u32 = 5;
/// Size of the 16-byte VM generation id's own page at the top of the ACPI area.
pub const GENERATION_ID: u64 = ACPI_END - 0x1000;
