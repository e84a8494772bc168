//! CMOS memory and real-time clock (Motorola MC146818A, with the century byte of a PC at 0x32).
//!
//! The clock always shows the host's time in UTC: it cannot be set, it has no alarm and raises no
//! interrupt. An update is never in progress, so that a guest never waits for the end of one. Time
//! registers are served from one reading of the clock, taken when the guest looks at register A or
//! at the seconds, which every driver does first; minutes and hours of one look thus agree.

use std::time::Duration;

use crate::bus::BusDevice;

/// Number of ports: index and data.
pub const RTC_PORTS: u64 = 2;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const DAY_OF_WEEK: u8 = 0x06;
const DAY_OF_MONTH: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

/// 32.768 kHz time base, 1024 Hz rate; update-in-progress (bit 7) clear.
const A_RUNNING: u8 = 0x26;
const B_24_HOUR: u8 = 1 << 1;
const B_BINARY: u8 = 1 << 2;
const B_SET: u8 = 1 << 7;
/// Writable bits of B. The interrupt enables read as zero: there is no interrupt.
const B_MASK: u8 = B_24_HOUR | B_BINARY | B_SET;
/// Memory and time are valid.
const D_VRT: u8 = 1 << 7;
const HOUR_PM: u8 = 1 << 7;

const KIB: u64 = 1 << 10;
const BLOCK: u64 = 64 << 10;

/// Tells the time as seconds since the Unix epoch, UTC.
pub type RtcClock = Box<dyn Fn() -> Duration + Send>;

/// The chip.
pub struct Rtc {
    clock: RtcClock,
    index: u8,
    ram: [u8; 128],
    latched: CivilTime,
    latched_at: u64,
}

impl Rtc {
    /// `low_ram` and `high_ram` are the bytes of RAM below and above 4 GiB, for old software that
    /// asks here.
    pub fn new(clock: RtcClock, low_ram: u64, high_ram: u64) -> Self {
        let now = clock().as_secs();
        let mut ram = [0; 128];
        let mut word = |at: usize, value: u64| {
            let value = u16::try_from(value).unwrap_or(u16::MAX);
            ram[at..at + 2].copy_from_slice(&value.to_le_bytes());
        };
        word(0x15, 640);
        let above_1m = low_ram.saturating_sub(1 << 20) / KIB;
        word(0x17, above_1m);
        word(0x30, above_1m);
        word(0x34, low_ram.saturating_sub(16 << 20) / BLOCK);
        let above_4g = (high_ram / BLOCK).min(0xff_ffff).to_le_bytes();
        ram[0x5b..0x5e].copy_from_slice(&above_4g[..3]);
        ram[usize::from(REGISTER_B)] = B_24_HOUR;
        Self { clock, index: 0, ram, latched: CivilTime::from_unix(now), latched_at: now }
    }

    fn latch(&mut self, at_least: bool) {
        let now = (self.clock)().as_secs();
        // A look at the minutes alone must not see a time long gone.
        if at_least || now.abs_diff(self.latched_at) > 1 {
            self.latched = CivilTime::from_unix(now);
            self.latched_at = now;
        }
    }

    fn read_cell(&mut self) -> u8 {
        let index = self.index;
        if matches!(index, SECONDS..=REGISTER_A | CENTURY) {
            self.latch(matches!(index, SECONDS | REGISTER_A));
        }
        let time = self.latched;
        match index {
            SECONDS => self.encode(time.second),
            MINUTES => self.encode(time.minute),
            HOURS => self.encode_hour(time.hour),
            DAY_OF_WEEK => self.encode(time.weekday),
            DAY_OF_MONTH => self.encode(time.day),
            MONTH => self.encode(time.month),
            YEAR => self.encode((time.year % 100) as u8),
            CENTURY => self.encode((time.year / 100 % 100) as u8),
            REGISTER_A => A_RUNNING,
            REGISTER_C => 0,
            REGISTER_D => D_VRT,
            _ => self.ram.get(usize::from(index)).copied().unwrap_or(0xff),
        }
    }

    fn write_cell(&mut self, value: u8) {
        match self.index {
            SECONDS | MINUTES | HOURS | DAY_OF_WEEK..=REGISTER_A | REGISTER_C | REGISTER_D | CENTURY => {}
            REGISTER_B => self.ram[usize::from(REGISTER_B)] = value & B_MASK,
            index => {
                if let Some(cell) = self.ram.get_mut(usize::from(index)) {
                    *cell = value;
                }
            }
        }
    }

    fn register_b(&self) -> u8 {
        self.ram[usize::from(REGISTER_B)]
    }

    fn encode(&self, value: u8) -> u8 {
        if self.register_b() & B_BINARY != 0 { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.register_b() & B_24_HOUR != 0 {
            return self.encode(hour);
        }
        let pm = if hour >= 12 { HOUR_PM } else { 0 };
        self.encode((hour + 11) % 12 + 1) | pm
    }
}

impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // The index port is write-only.
        if offset == 1
            && let Some(byte) = data.first_mut()
        {
            *byte = self.read_cell();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        match offset {
            // Bit 7 masks the NMI, which we have no use for.
            0 => self.index = value & 0x7f,
            1 => self.write_cell(value),
            _ => {}
        }
    }
}

/// A moment as a calendar shows it. `weekday` counts from Sunday = 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CivilTime {
    year: u64,
    month: u8,
    day: u8,
    weekday: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl CivilTime {
    /// Proleptic Gregorian calendar. Years are counted from March, so that the leap day is the last
    /// of its year and months have the lengths of a repeating pattern.
    fn from_unix(seconds: u64) -> Self {
        const DAYS_PER_ERA: u64 = 146_097; // 400 years
        const EPOCH_FROM_MARCH_OF_YEAR_0: u64 = 719_468;
        let (days, in_day) = (seconds / 86_400, seconds % 86_400);
        let shifted = days + EPOCH_FROM_MARCH_OF_YEAR_0;
        let (era, day_of_era) = (shifted / DAYS_PER_ERA, shifted % DAYS_PER_ERA);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        Self {
            year: era * 400 + year_of_era + u64::from(month <= 2),
            month: month as u8,
            day: (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u8,
            // The epoch was a Thursday.
            weekday: ((days + 4) % 7 + 1) as u8,
            hour: (in_day / 3_600) as u8,
            minute: (in_day / 60 % 60) as u8,
            second: (in_day % 60) as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn rtc_at(seconds: u64) -> (Rtc, Arc<AtomicU64>) {
        let now = Arc::new(AtomicU64::new(seconds));
        let clock = now.clone();
        let clock = Box::new(move || Duration::from_secs(clock.load(Ordering::Relaxed)));
        (Rtc::new(clock, 3 << 30, 5 << 30), now)
    }

    fn read(rtc: &mut Rtc, index: u8) -> u8 {
        rtc.write(0, &[index]);
        let mut data = [0xff];
        rtc.read(1, &mut data);
        data[0]
    }

    fn write(rtc: &mut Rtc, index: u8, value: u8) {
        rtc.write(0, &[index]);
        rtc.write(1, &[value]);
    }

    fn date(rtc: &mut Rtc) -> [u8; 8] {
        [CENTURY, YEAR, MONTH, DAY_OF_MONTH, HOURS, MINUTES, SECONDS, DAY_OF_WEEK].map(|i| read(rtc, i))
    }

    #[test]
    fn shows_utc_in_bcd() {
        for (unix, expected) in [
            (0, [0x19, 0x70, 0x01, 0x01, 0x00, 0x00, 0x00, 5]),
            (951_782_399, [0x20, 0x00, 0x02, 0x28, 0x23, 0x59, 0x59, 2]),
            (951_782_400, [0x20, 0x00, 0x02, 0x29, 0x00, 0x00, 0x00, 3]),
            (1_709_251_199, [0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x59, 5]),
            (1_798_761_600, [0x20, 0x27, 0x01, 0x01, 0x00, 0x00, 0x00, 6]),
            (4_107_542_400, [0x21, 0x00, 0x03, 0x01, 0x00, 0x00, 0x00, 2]),
        ] {
            let (mut rtc, _) = rtc_at(unix);
            assert_eq!(date(&mut rtc), expected, "{unix}");
        }
    }

    #[test]
    fn binary_and_twelve_hour_formats_are_honoured() {
        let (mut rtc, _) = rtc_at(13 * 3600 + 45 * 60);
        write(&mut rtc, REGISTER_B, B_BINARY | B_24_HOUR);
        assert_eq!((read(&mut rtc, HOURS), read(&mut rtc, MINUTES)), (13, 45));
        write(&mut rtc, REGISTER_B, 0);
        assert_eq!(read(&mut rtc, HOURS), 0x01 | HOUR_PM);
        let (mut rtc, _) = rtc_at(0);
        write(&mut rtc, REGISTER_B, 0);
        assert_eq!(read(&mut rtc, HOURS), 0x12);
    }

    #[test]
    fn no_update_is_ever_in_progress_and_the_time_cannot_be_set() {
        let (mut rtc, _) = rtc_at(1_709_251_199);
        let before = date(&mut rtc);
        for index in 0..0x80 {
            write(&mut rtc, index, 0xff);
        }
        assert_eq!(read(&mut rtc, REGISTER_A), A_RUNNING);
        assert_eq!(read(&mut rtc, REGISTER_B), B_MASK);
        assert_eq!(read(&mut rtc, REGISTER_C), 0);
        assert_eq!(read(&mut rtc, REGISTER_D), D_VRT);
        write(&mut rtc, REGISTER_B, B_24_HOUR);
        assert_eq!(date(&mut rtc), before);
    }

    #[test]
    fn one_look_never_mixes_two_times() {
        let (mut rtc, now) = rtc_at(3_599);
        assert_eq!(read(&mut rtc, REGISTER_A), A_RUNNING);
        now.store(3_600, Ordering::Relaxed);
        assert_eq!((read(&mut rtc, MINUTES), read(&mut rtc, HOURS)), (0x59, 0x00));
        assert_eq!(read(&mut rtc, SECONDS), 0x00);
        assert_eq!((read(&mut rtc, MINUTES), read(&mut rtc, HOURS)), (0x00, 0x01));
        now.store(10_000, Ordering::Relaxed);
        assert_eq!(read(&mut rtc, HOURS), 0x02);
    }

    #[test]
    fn memory_size_and_scratch_cells_read_back() {
        let (mut rtc, _) = rtc_at(0);
        assert_eq!((read(&mut rtc, 0x15), read(&mut rtc, 0x16)), (0x80, 0x02));
        assert_eq!((read(&mut rtc, 0x34), read(&mut rtc, 0x35)), (0x00, 0xbf));
        assert_eq!([0x5b, 0x5c, 0x5d].map(|i| read(&mut rtc, i)), [0x00, 0x40, 0x01]);
        // Bit 7 of the index is the NMI mask.
        write(&mut rtc, 0x40, 0x5a);
        assert_eq!(read(&mut rtc, 0xc0), 0x5a);
        let mut data = [0xff; 4];
        rtc.read(0, &mut data);
        rtc.read(7, &mut data);
        rtc.write(1, &[]);
        assert_eq!(data, [0xff; 4]);
    }
}
