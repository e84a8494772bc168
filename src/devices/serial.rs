//! 16550A UART (National Semiconductor PC16550D data sheet, section 8).
//!
//! ```text
//!  guest ── THR ──▶ ConsoleSink (must not block)          host ── enqueue_input ──▶ FIFO ── RBR ──▶ guest
//!                    └ transmitter is always empty                    └ bounded, tells how much it took
//! ```
//!
//! A byte written is on its way before the guest's next instruction, so the transmitter is always
//! empty and the guest never polls. The interrupt output is edge-triggered: it fires whenever an
//! enabled cause appears that was not there before. Baud rate and line format are remembered and
//! have no effect.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::bus::BusDevice;
use crate::interrupt::InterruptLine;

/// Number of ports.
pub const SERIAL_PORTS: u64 = 8;

/// Receive FIFO in bytes. Deeper than the 16 of the part, which no driver minds, so that a paste
/// needs fewer interrupts.
const RX_FIFO_LEN: usize = 64;

// Register offsets; 0 and 1 hold the divisor while DLAB is set.
const DATA: u64 = 0;
const IER: u64 = 1;
const IIR_FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;
const SCR: u64 = 7;

const IER_RDA: u8 = 1 << 0;
const IER_THRE: u8 = 1 << 1;
const IER_RLS: u8 = 1 << 2;
const IER_MASK: u8 = 0x0f;

const IIR_NONE: u8 = 0x01;
const IIR_THRE: u8 = 0x02;
const IIR_RDA: u8 = 0x04;
const IIR_RLS: u8 = 0x06;
const IIR_FIFO: u8 = 0xc0;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RX: u8 = 1 << 1;

const LCR_DLAB: u8 = 1 << 7;

const MCR_LOOP: u8 = 1 << 4;
const MCR_MASK: u8 = 0x1f;

const LSR_DR: u8 = 1 << 0;
const LSR_OE: u8 = 1 << 1;
const LSR_THRE: u8 = 1 << 5;
const LSR_TEMT: u8 = 1 << 6;

const MSR_CTS: u8 = 1 << 4;
const MSR_DSR: u8 = 1 << 5;
const MSR_DCD: u8 = 1 << 7;

/// Where the guest's output goes.
pub trait ConsoleSink: Send {
    /// Takes bytes that the guest printed. Called on a vCPU thread with the port locked: must not
    /// block; what it cannot take it drops.
    fn write(&mut self, bytes: &[u8]);

    /// The guest has made room for more input after [`Serial::enqueue_input`] took less than it was
    /// given. Called with the port locked.
    fn input_wanted(&mut self) {}
}

/// The port.
pub struct Serial {
    irq: Arc<dyn InterruptLine>,
    out: Box<dyn ConsoleSink>,
    rx: VecDeque<u8>,
    /// `enqueue_input` refused something since the last `input_wanted`.
    input_refused: bool,
    ier: u8,
    fifo_enabled: bool,
    lcr: u8,
    mcr: u8,
    scr: u8,
    divisor: [u8; 2],
    overrun: bool,
    /// The transmitter became empty and nobody has acknowledged it yet.
    thre_pending: bool,
    /// Enabled causes (as IER bits) for which the line has fired.
    signalled: u8,
}

impl Serial {
    /// A port in its reset state.
    pub fn new(irq: Arc<dyn InterruptLine>, out: Box<dyn ConsoleSink>) -> Self {
        Self {
            irq,
            out,
            rx: VecDeque::with_capacity(RX_FIFO_LEN),
            input_refused: false,
            ier: 0,
            fifo_enabled: false,
            lcr: 0x03,
            mcr: 0,
            scr: 0,
            divisor: [12, 0],
            overrun: false,
            thre_pending: false,
            signalled: 0,
        }
    }

    /// Offers input to the guest and returns how many bytes it took: what fits its FIFO, nothing
    /// while the port is looped back. [`ConsoleSink::input_wanted`] tells when to offer the rest.
    pub fn enqueue_input(&mut self, bytes: &[u8]) -> usize {
        let room = if self.looped_back() { 0 } else { RX_FIFO_LEN - self.rx.len() };
        let taken = bytes.len().min(room);
        self.rx.extend(bytes.iter().take(taken));
        self.input_refused |= taken < bytes.len();
        // A key press is a new edge even if the guest has not answered the last one: an edge that
        // got lost while the line was masked does not silence the console for ever.
        if taken > 0 {
            self.signalled &= !IER_RDA;
        }
        self.update_interrupt();
        taken
    }

    /// Machine reset: as new, and unread input is gone.
    pub fn reset(&mut self) {
        let Self {
            irq: _,
            out,
            rx,
            input_refused,
            ier,
            fifo_enabled,
            lcr,
            mcr,
            scr,
            divisor,
            overrun,
            thre_pending,
            signalled,
        } = self;
        rx.clear();
        if std::mem::take(input_refused) {
            out.input_wanted();
        }
        (*ier, *fifo_enabled, *lcr, *mcr, *scr) = (0, false, 0x03, 0, 0);
        (*divisor, *overrun, *thre_pending, *signalled) = ([12, 0], false, false, 0);
    }

    fn looped_back(&self) -> bool {
        self.mcr & MCR_LOOP != 0
    }

    fn divisor_latched(&self) -> bool {
        self.lcr & LCR_DLAB != 0
    }

    fn transmit(&mut self, bytes: &[u8]) {
        if self.looped_back() {
            let room = RX_FIFO_LEN - self.rx.len();
            self.rx.extend(bytes.iter().take(room));
            self.overrun |= bytes.len() > room;
        } else {
            self.out.write(bytes);
        }
        self.thre_pending = true;
        // A new byte is a new edge, even if the guest did not look at the last one.
        self.signalled &= !IER_THRE;
    }

    fn receive(&mut self) -> u8 {
        let byte = self.rx.pop_front().unwrap_or(0);
        // Half empty rather than empty: the host refills while the guest reads on.
        if self.input_refused && self.rx.len() <= RX_FIFO_LEN / 2 && !self.looped_back() {
            self.input_refused = false;
            self.out.input_wanted();
        }
        byte
    }

    /// Enabled interrupt causes, as bits of IER.
    fn causes(&self) -> u8 {
        let mut causes = 0;
        if self.overrun {
            causes |= IER_RLS;
        }
        if !self.rx.is_empty() {
            causes |= IER_RDA;
        }
        if self.thre_pending {
            causes |= IER_THRE;
        }
        causes & self.ier
    }

    fn update_interrupt(&mut self) {
        let causes = self.causes();
        if causes & !self.signalled != 0
            && let Err(error) = self.irq.trigger()
        {
            tracing::debug!(%error, "serial interrupt was not delivered");
        }
        self.signalled = causes;
    }

    /// Interrupt identification in the priority order of the data sheet, table 5. Reading it
    /// acknowledges an empty transmitter.
    fn identify(&mut self) -> u8 {
        let causes = self.causes();
        let id = if causes & IER_RLS != 0 {
            IIR_RLS
        } else if causes & IER_RDA != 0 {
            IIR_RDA
        } else if causes & IER_THRE != 0 {
            self.thre_pending = false;
            IIR_THRE
        } else {
            IIR_NONE
        };
        if self.fifo_enabled { id | IIR_FIFO } else { id }
    }

    fn line_status(&mut self) -> u8 {
        let mut status = LSR_THRE | LSR_TEMT;
        if !self.rx.is_empty() {
            status |= LSR_DR;
        }
        if std::mem::take(&mut self.overrun) {
            status |= LSR_OE;
        }
        status
    }

    /// In loopback the modem outputs come back as inputs: RTS → CTS, DTR → DSR, OUT1 → RI, OUT2 → DCD.
    fn modem_status(&self) -> u8 {
        if !self.looped_back() {
            return MSR_CTS | MSR_DSR | MSR_DCD;
        }
        let (dtr, rts, outs) = (self.mcr & 1, self.mcr >> 1 & 1, self.mcr >> 2 & 3);
        rts << 4 | dtr << 5 | outs << 6
    }

    fn read_register(&mut self, offset: u64) -> u8 {
        match offset {
            DATA if self.divisor_latched() => self.divisor[0],
            IER if self.divisor_latched() => self.divisor[1],
            DATA => self.receive(),
            IER => self.ier,
            IIR_FCR => self.identify(),
            LCR => self.lcr,
            MCR => self.mcr,
            LSR => self.line_status(),
            MSR => self.modem_status(),
            SCR => self.scr,
            _ => 0xff,
        }
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        match offset {
            DATA if self.divisor_latched() => self.divisor[0] = value,
            IER if self.divisor_latched() => self.divisor[1] = value,
            DATA => self.transmit(&[value]),
            IER => {
                // Enabling the interrupt reports a transmitter that is empty already; drivers test
                // for this.
                if value & !self.ier & IER_THRE != 0 {
                    self.thre_pending = true;
                }
                self.ier = value & IER_MASK;
            }
            IIR_FCR => {
                self.fifo_enabled = value & FCR_ENABLE != 0;
                if value & FCR_CLEAR_RX != 0 {
                    self.rx.clear();
                }
            }
            LCR => self.lcr = value,
            MCR => self.mcr = value & MCR_MASK,
            SCR => self.scr = value,
            // LSR and MSR are read-only.
            _ => {}
        }
    }
}

impl BusDevice for Serial {
    /// Registers are one byte wide: a longer `data` is so many reads of the same register.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for byte in data {
            *byte = self.read_register(offset);
        }
        self.update_interrupt();
    }

    /// Registers are one byte wide: a longer `data` is so many writes to the same register.
    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == DATA && !self.divisor_latched() {
            self.transmit(data);
        } else {
            for &byte in data {
                self.write_register(offset, byte);
            }
        }
        self.update_interrupt();
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Line(AtomicUsize);

    impl InterruptLine for Line {
        fn trigger(&self) -> io::Result<()> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    #[derive(Default, Clone)]
    struct Sink {
        printed: Arc<Mutex<Vec<u8>>>,
        wanted: Arc<AtomicUsize>,
    }

    impl ConsoleSink for Sink {
        fn write(&mut self, bytes: &[u8]) {
            self.printed.lock().unwrap().extend_from_slice(bytes);
        }
        fn input_wanted(&mut self) {
            self.wanted.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Port {
        serial: Serial,
        line: Arc<Line>,
        sink: Sink,
    }

    impl Port {
        fn new() -> Self {
            let (line, sink) = (Arc::new(Line::default()), Sink::default());
            Self { serial: Serial::new(line.clone(), Box::new(sink.clone())), line, sink }
        }
        fn inb(&mut self, offset: u64) -> u8 {
            let mut data = [0xff];
            self.serial.read(offset, &mut data);
            data[0]
        }
        fn outb(&mut self, offset: u64, value: u8) {
            self.serial.write(offset, &[value]);
        }
        fn interrupts(&self) -> usize {
            self.line.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn output_reaches_the_sink_and_the_transmitter_stays_empty() {
        let mut port = Port::new();
        port.outb(DATA, b'h');
        port.serial.write(DATA, b"ello");
        assert_eq!(*port.sink.printed.lock().unwrap(), b"hello");
        assert_eq!(port.inb(LSR), LSR_THRE | LSR_TEMT);
        assert_eq!(port.interrupts(), 0);
    }

    #[test]
    fn empty_transmitter_interrupts_when_enabled_and_after_each_byte() {
        let mut port = Port::new();
        port.outb(IER, IER_THRE);
        assert_eq!(port.interrupts(), 1);
        assert_eq!(port.inb(IIR_FCR) & 0x0f, IIR_THRE);
        assert_eq!(port.inb(IIR_FCR) & 0x0f, IIR_NONE);
        for expected in 2..5 {
            port.outb(DATA, b'x');
            assert_eq!(port.interrupts(), expected);
        }
        // What drivers do to see whether the interrupt works again: off and on.
        port.outb(IER, 0);
        assert_eq!(port.inb(IIR_FCR) & 0x0f, IIR_NONE);
        port.outb(IER, IER_THRE);
        assert_eq!(port.interrupts(), 5);
        assert_eq!(port.inb(IIR_FCR) & 0x0f, IIR_THRE);
    }

    #[test]
    fn input_is_bounded_and_the_host_is_told_when_there_is_room() {
        let mut port = Port::new();
        port.outb(IIR_FCR, FCR_ENABLE);
        port.outb(IER, IER_RDA);
        let typed = [b'a'; 100];
        assert_eq!(port.serial.enqueue_input(&typed), RX_FIFO_LEN);
        assert_eq!(port.serial.enqueue_input(&typed), 0);
        assert_eq!(port.interrupts(), 1);
        assert_eq!(port.inb(IIR_FCR), IIR_FIFO | IIR_RDA);
        for _ in 0..RX_FIFO_LEN / 2 {
            assert_eq!(port.inb(DATA), b'a');
        }
        assert_eq!(port.sink.wanted.load(Ordering::Relaxed), 1);
        for _ in 0..RX_FIFO_LEN / 2 {
            assert_eq!(port.inb(LSR) & LSR_DR, LSR_DR);
            port.inb(DATA);
        }
        assert_eq!(port.inb(LSR) & LSR_DR, 0);
        assert_eq!(port.inb(DATA), 0);
        assert_eq!(port.inb(IIR_FCR), IIR_FIFO | IIR_NONE);
        assert_eq!(port.serial.enqueue_input(b"b"), 1);
        assert_eq!(port.interrupts(), 2);
    }

    #[test]
    fn loopback_passes_a_driver_probe_and_hides_the_outside() {
        let mut port = Port::new();
        // The probe of Linux 8250: LOOP | OUT2 | RTS must read back as DCD | CTS.
        port.outb(MCR, MCR_LOOP | 0x0a);
        assert_eq!(port.inb(MSR) & 0xf0, MSR_DCD | MSR_CTS);
        assert_eq!(port.serial.enqueue_input(b"x"), 0);
        port.serial.write(DATA, &[7; RX_FIFO_LEN + 1]);
        assert!(port.sink.printed.lock().unwrap().is_empty());
        assert_eq!(port.inb(LSR) & (LSR_DR | LSR_OE), LSR_DR | LSR_OE);
        assert_eq!(port.inb(LSR) & LSR_OE, 0);
        assert_eq!(port.inb(DATA), 7);
        port.outb(MCR, 0x0b);
        assert_eq!(port.inb(MSR), MSR_CTS | MSR_DSR | MSR_DCD);
    }

    #[test]
    fn divisor_latch_hides_data_and_interrupt_enable() {
        let mut port = Port::new();
        port.outb(IER, 0xff);
        assert_eq!(port.inb(IER), 0x0f);
        port.outb(LCR, LCR_DLAB | 3);
        port.outb(DATA, 0x34);
        port.outb(IER, 0x12);
        assert_eq!((port.inb(DATA), port.inb(IER)), (0x34, 0x12));
        port.outb(LCR, 3);
        assert_eq!(port.inb(IER), 0x0f);
        assert!(port.sink.printed.lock().unwrap().is_empty());
    }

    #[test]
    fn probe_for_larger_parts_finds_a_16550a() {
        let mut port = Port::new();
        port.outb(IIR_FCR, FCR_ENABLE);
        assert_eq!(port.inb(IIR_FCR) >> 6, 3);
        port.outb(LCR, LCR_DLAB);
        port.outb(IIR_FCR, FCR_ENABLE | 0x20);
        assert_eq!(port.inb(IIR_FCR) >> 5, 6, "bit 5 would claim the 64-byte FIFO of a 16750");
    }

    #[test]
    fn reset_forgets_input_and_registers() {
        let mut port = Port::new();
        port.outb(IER, 0x0f);
        port.serial.enqueue_input(&[1; 70]);
        port.serial.reset();
        assert_eq!((port.inb(IER), port.inb(LSR) & LSR_DR), (0, 0));
        assert_eq!(port.sink.wanted.load(Ordering::Relaxed), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_sequence_of_accesses_is_harmless(
            accesses in prop::collection::vec((any::<bool>(), 0u64..10, prop::collection::vec(any::<u8>(), 0..9)), 0..200),
        ) {
            let mut port = Port::new();
            for (write, offset, mut data) in accesses {
                if write {
                    port.serial.write(offset, &data);
                } else {
                    port.serial.read(offset, &mut data);
                }
                port.serial.enqueue_input(&data);
                prop_assert!(port.serial.rx.len() <= RX_FIFO_LEN);
            }
        }
    }
}
