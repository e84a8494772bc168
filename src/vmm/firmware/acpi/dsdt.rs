//! The definition block: devices that cannot be found by probing, in AML.
//!
//! ```text
//!  \_S5                      sleep type of power-off
//!  \_SB.PCI0   PNP0A08       host bridge: bus 0, windows for BARs
//!  \_SB.PCI0.S01 … S1F       slots of bus 0              ◀┐ Notify, by
//!  \_SB.PCI0.SCAN            which have news ────────────┘
//!  \_SB.MBRD   PNP0C02       what no driver may claim: PCI configuration space, power ports
//!  \_SB.COM1   PNP0501       serial port
//!  \_SB.RTC0   PNP0B00       CMOS clock, where there is one
//!  \_SB.PWRB   PNP0C0C       power button            ◀┐ Notify
//!  \_SB.VGEN   VMGENCTR      VM generation id        ◀┤
//!  \_SB.GED0   ACPI0013      POWER_IRQ → _EVT reads ──┘ which events are pending; calls SCAN
//!  \_SB.C000…  ACPI0007      processors
//! ```

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Field,
    FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed,
    Method, MethodCall, Name, NotEqual, Notify, ONE, OpRegion, OpRegionSpace, Or, Package, Path,
    ResourceTemplate, Return, Scope, Store, Uuid, ZERO,
};
use kiln_devices::pci::SLOT_COUNT;

use super::AcpiSpec;
use crate::layout;

/// Notification value: power button pressed (§4.8.3.1.1), and generation id changed.
const NOTIFY_CHANGED: u8 = 0x80;
/// Notification values of §5.6.6: look whether something has come, and let go of what is there.
const NOTIFY_DEVICE_CHECK: u8 = 1;
const NOTIFY_EJECT_REQUEST: u8 = 3;
/// `_STA`: present, enabled, shown, working.
const STATUS_PRESENT: u8 = 0x0f;

/// All of the DSDT after its header.
pub(super) fn definition_block(spec: &AcpiSpec) -> Vec<u8> {
    let mut aml = Vec::new();
    sleep_state_s5(&mut aml);
    host_bridge(spec, &mut aml);
    motherboard(&mut aml);
    serial_port(&mut aml);
    if spec.cmos_rtc {
        cmos_clock(&mut aml);
    }
    power_button(&mut aml);
    generation_id(&mut aml);
    event_device(&mut aml);
    processors(spec.vcpus, &mut aml);
    aml
}

/// The other sleep states do not exist. All four elements, as some readers insist.
fn sleep_state_s5(aml: &mut Vec<u8>) {
    Name::new(
        "_S5_".into(),
        &Package::new(vec![&layout::S5_SLEEP_TYPE, &layout::S5_SLEEP_TYPE, &ZERO, &ZERO]),
    )
    .to_aml_bytes(aml);
}

/// PCI Express root (PCI Firmware 3.2 §4). No `_PRT`: no function has an interrupt pin, all use
/// MSI-X.
fn host_bridge(spec: &AcpiSpec, aml: &mut Vec<u8>) {
    let bus = AddressSpace::new_bus_number(0u16, 0);
    let config_ports = IO::new(layout::PCI_CONFIG_PORT, layout::PCI_CONFIG_PORT, 1, 8);
    let window32 = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        layout::PCI_MMIO32_START as u32,
        (layout::PCI_MMIO32_START + layout::PCI_MMIO32_SIZE - 1) as u32,
        None,
    );
    let window64 = spec.pci_mmio64.map(|(start, size)| {
        AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, start, start + (size - 1), None)
    });
    let mut resources: Vec<&dyn Aml> = vec![&bus, &config_ports, &window32];
    if let Some(window) = &window64 {
        resources.push(window);
    }
    Device::new(
        "\\_SB_.PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
            &operating_system_capabilities(),
            &slots(),
        ],
    )
    .to_aml_bytes(aml);
}

/// A slot that can be emptied for each device of bus 0, whether or not there is one (§6.3.3). Functions on the
/// root bus have no port above them, so PCI Express's own hot-plug is not for them whatever `_OSC` grants.
/// There is no `_STA`: an operating system then looks at the vendor id.
fn slots() -> RawAml {
    let mut aml = Vec::new();
    let registers = layout::HOTPLUG_PORT;
    OpRegion::new("HREG".into(), OpRegionSpace::SystemIO, &registers, &layout::HOTPLUG_PORT_LEN)
        .to_aml_bytes(&mut aml);
    let register = |name: &[u8; 4]| FieldEntry::Named(*name, 32);
    Field::new(
        "HREG".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![register(b"COME"), register(b"GO__"), register(b"EJCT")],
    )
    .to_aml_bytes(&mut aml);
    let mut news = Vec::new();
    for slot in 1..SLOT_COUNT as u32 {
        let name = format!("S{slot:02X}_");
        let (bit, address) = (1u32 << slot, slot << 16);
        Device::new(
            name.as_str().into(),
            vec![
                &Name::new("_SUN".into(), &slot),
                &Name::new("_ADR".into(), &address),
                &Method::new("_EJ0".into(), 1, true, vec![&Store::new(&NameRef("EJCT"), &bit)]),
            ],
        )
        .to_aml_bytes(&mut aml);
        let path = || Path::new(&name);
        for (pending, value) in [(Local(0), NOTIFY_DEVICE_CHECK), (Local(1), NOTIFY_EJECT_REQUEST)] {
            If::new(&And::new(&ZERO, &pending, &bit), vec![&Notify::new(&path(), &value)])
                .to_aml_bytes(&mut news);
        }
    }
    Method::new(
        "SCAN".into(),
        0,
        true,
        vec![
            &Store::new(&Local(0), &NameRef("COME")),
            &Store::new(&Local(1), &NameRef("GO__")),
            &RawAml(news),
        ],
    )
    .to_aml_bytes(&mut aml);
    RawAml(aml)
}

/// `_OSC` (PCI Firmware 3.2 §4.5.1): hands every PCI Express feature that is asked for to the
/// operating system, by returning the request as it came. Without the method Linux turns features
/// off and says so.
fn operating_system_capabilities() -> RawAml {
    const UNRECOGNIZED_UUID: u8 = 1 << 2;
    const UNRECOGNIZED_REVISION: u8 = 1 << 3;
    let is_host_bridge = Uuid::new("33DB4D5B-1FF7-401C-9657-7441C03DD766");
    let complain = |error: u8| {
        let mut aml = Vec::new();
        Or::new(&NameRef("CDW1"), &NameRef("CDW1"), &error).to_aml_bytes(&mut aml);
        RawAml(aml)
    };
    let mut aml = Vec::new();
    Method::new(
        "_OSC".into(),
        4,
        false,
        vec![
            &CreateDWordField::new(&NameRef("CDW1"), &Arg(3), &ZERO),
            &If::new(&NotEqual::new(&Arg(0), &is_host_bridge), vec![&complain(UNRECOGNIZED_UUID)]),
            &If::new(&NotEqual::new(&Arg(1), &ONE), vec![&complain(UNRECOGNIZED_REVISION)]),
            &Return::new(&Arg(3)),
        ],
    )
    .to_aml_bytes(&mut aml);
    RawAml(aml)
}

/// Linux uses extended configuration space only where ACPI or the memory map reserves it.
fn motherboard(aml: &mut Vec<u8>) {
    Device::new(
        "\\_SB_.MBRD".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, layout::ECAM_START as u32, layout::ECAM_SIZE as u32),
                    &IO::new(layout::POWER_PORT, layout::POWER_PORT, 1, layout::POWER_PORT_LEN as u8),
                    &IO::new(layout::HOTPLUG_PORT, layout::HOTPLUG_PORT, 1, layout::HOTPLUG_PORT_LEN as u8),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

fn serial_port(aml: &mut Vec<u8>) {
    Device::new(
        "\\_SB_.COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_DDN".into(), &"COM1"),
            &Name::new("_STA".into(), &STATUS_PRESENT),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 1, 8),
                    &edge_interrupt(layout::SERIAL_IRQ),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// Time of day only: without an interrupt there are no alarms.
fn cmos_clock(aml: &mut Vec<u8>) {
    Device::new(
        "\\_SB_.RTC0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&IO::new(layout::RTC_PORT, layout::RTC_PORT, 1, 2)]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

fn power_button(aml: &mut Vec<u8>) {
    Device::new("\\_SB_.PWRB".into(), vec![&Name::new("_HID".into(), &EISAName::new("PNP0C0C"))])
        .to_aml_bytes(aml);
}

/// The `_HID` is what Linux's driver matches. Up to 6.9 that driver ignores `_CID`; the name in
/// mixed case is what Windows looks for.
fn generation_id(aml: &mut Vec<u8>) {
    let low = layout::GENERATION_ID as u32;
    Device::new(
        "\\_SB_.VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"VMGENCTR"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("_STA".into(), &STATUS_PRESENT),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &ZERO])),
        ],
    )
    .to_aml_bytes(aml);
}

/// Generic event device (§5.6.9). Reading the event register clears it, so it is read once.
fn event_device(aml: &mut Vec<u8>) {
    let event_port = layout::POWER_PORT + layout::POWER_EVENTS;
    let button = layout::EVENT_POWER_BUTTON;
    let generation = layout::EVENT_GENERATION_ID;
    Device::new(
        "\\_SB_.GED0".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&edge_interrupt(layout::POWER_IRQ)])),
            &OpRegion::new("EREG".into(), OpRegionSpace::SystemIO, &event_port, &4u8),
            &Field::new(
                "EREG".into(),
                FieldAccessType::DWord,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"EVTS", 32)],
            ),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![
                    &Store::new(&Local(0), &NameRef("EVTS")),
                    &on_event(button, "\\_SB_.PWRB"),
                    &on_event(generation, "\\_SB_.VGEN"),
                    &If::new(
                        &And::new(&ZERO, &Local(0), &layout::EVENT_HOTPLUG),
                        vec![&MethodCall::new("\\_SB_.PCI0.SCAN".into(), Vec::new())],
                    ),
                ],
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// `If (Local0 & bit) { Notify (device, 0x80) }`
fn on_event(bit: u32, device: &str) -> RawAml {
    let mut aml = Vec::new();
    If::new(&And::new(&ZERO, &Local(0), &bit), vec![&Notify::new(&Path::new(device), &NOTIFY_CHANGED)])
        .to_aml_bytes(&mut aml);
    RawAml(aml)
}

/// `_UID` ties each to its local APIC in the MADT.
fn processors(count: u8, aml: &mut Vec<u8>) {
    let mut devices = Vec::new();
    for id in 0..count {
        Device::new(
            format!("C{id:03X}").as_str().into(),
            vec![&Name::new("_HID".into(), &"ACPI0007"), &Name::new("_UID".into(), &id)],
        )
        .to_aml_bytes(&mut devices);
    }
    Scope::new("\\_SB_".into(), vec![&RawAml(devices)]).to_aml_bytes(aml);
}

fn edge_interrupt(gsi: u32) -> Interrupt {
    let (consumer, edge_triggered, active_low, shared) = (true, true, false, false);
    Interrupt::new(consumer, edge_triggered, active_low, shared, gsi)
}

/// A four-letter name as an operand.
struct NameRef(&'static str);

impl Aml for NameRef {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(self.0.as_bytes());
    }
}

/// Bytes that are AML already.
struct RawAml(Vec<u8>);

impl Aml for RawAml {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}
