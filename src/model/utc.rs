//! Unix seconds as calendar time, for the text forms that protocols want.

/// A moment in UTC, to the second, without leap seconds. Up to the end of the year 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Utc {
    /// Year, 1970 to 9999.
    pub year: u16,
    /// Month, 1 to 12.
    pub month: u8,
    /// Day of the month, 1 to 31.
    pub day: u8,
    /// Hour, 0 to 23.
    pub hour: u8,
    /// Minute, 0 to 59.
    pub minute: u8,
    /// Second, 0 to 59.
    pub second: u8,
    /// Day of the week from Sunday, 0 to 6.
    pub weekday: u8,
}

/// Last second that has a year of four digits.
const END_OF_9999: u64 = 253_402_300_799;

impl Utc {
    /// The moment `seconds` after 1970-01-01T00:00:00Z. Later moments read as the end of 9999.
    pub fn from_unix(seconds: u64) -> Self {
        let seconds = seconds.min(END_OF_9999);
        let (days, of_day) = (seconds / 86_400, seconds % 86_400);
        // Counted from 0000-03-01: with March first, the leap day is the last of its year, and 400
        // years (an era) always have 146 097 days.
        let shifted = days + 719_468;
        let (era, of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // Months from March have 31, 30, 31, 30, 31 days over and over: 153 in five.
        let from_march = (5 * of_year + 2) / 153;
        let month = (from_march + 2) % 12 + 1;
        let small = |value: u64| u8::try_from(value).unwrap_or(u8::MAX);
        Utc {
            year: u16::try_from(era * 400 + year_of_era + u64::from(month <= 2)).unwrap_or(u16::MAX),
            month: small(month),
            day: small(of_year - (153 * from_march + 2) / 5 + 1),
            hour: small(of_day / 3600),
            minute: small(of_day / 60 % 60),
            second: small(of_day % 60),
            weekday: small((days + 4) % 7),
        }
    }

    /// Unix seconds of an RFC 3339 time (§5.6); fractions of a second are cut off. `None` for anything
    /// else, and for moments before 1970.
    pub fn parse_rfc3339(text: &str) -> Option<u64> {
        let text = text.is_ascii().then_some(text)?;
        let (date, rest) = text.split_at_checked(10)?;
        let (time, rest) = rest.strip_prefix(['T', 't', ' '])?.split_at_checked(8)?;
        let zone = match rest.strip_prefix('.') {
            None => rest,
            Some(fraction) => {
                let zone = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
                (zone.len() < fraction.len()).then_some(zone)?
            }
        };
        let offset = match zone {
            "Z" | "z" => 0,
            _ => {
                let sign = if zone.starts_with('-') { -1 } else { 1 };
                let [hours, minutes] = numbers(zone.strip_prefix(['+', '-'])?, ':', [2, 2])?;
                (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))?
            }
        };
        let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
        let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let days_of_month = match month {
            2 => 28 + i64::from(leap),
            4 | 6 | 9 | 11 => 30,
            1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
            _ => return None,
        };
        // A leap second reads as the second after it.
        if !(1..=days_of_month).contains(&day) || hour > 23 || minute > 59 || second > 60 {
            return None;
        }
        // The inverse of `from_unix`, by the same calendar that begins in March.
        let (year, from_march) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let of_year = (153 * from_march + 2) / 5 + day - 1;
        let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
        let days = era * 146_097 + of_era - 719_468;
        u64::try_from(days * 86_400 + hour * 3600 + minute * 60 + second - offset).ok()
    }

    /// RFC 3339 in whole seconds: `2023-06-30T19:06:42Z`.
    pub fn rfc3339(self) -> String {
        let Utc { year, month, day, hour, minute, second, .. } = self;
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }

    /// The date of HTTP headers (RFC 9110 §5.6.7): `Thu, 27 Jun 2024 22:31:31 GMT`.
    pub fn http_date(self) -> String {
        const DAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
        const MONTHS: [&str; 12] =
            ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let Utc { year, day, hour, minute, second, .. } = self;
        let weekday = DAYS.get(usize::from(self.weekday)).unwrap_or(&"");
        let month = MONTHS.get(usize::from(self.month.wrapping_sub(1))).unwrap_or(&"");
        format!("{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
    }
}

/// Numbers of exactly `widths` digits, with `separator` between them and nothing around.
fn numbers<const N: usize>(text: &str, separator: char, widths: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(separator);
    let mut found = [0; N];
    for (number, width) in found.iter_mut().zip(widths) {
        let part = parts.next()?;
        let digits = part.len() == width && part.bytes().all(|b| b.is_ascii_digit());
        *number = digits.then(|| part.parse().ok())??;
    }
    parts.next().is_none().then_some(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_with_zones_and_fractions_are_read() {
        for (text, unix) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2023-07-01T01:25:35Z", Some(1_688_174_735)),
            ("2023-07-01t01:25:35.999z", Some(1_688_174_735)),
            ("2023-07-01 03:25:35+02:00", Some(1_688_174_735)),
            ("2023-06-30T19:55:35-05:30", Some(1_688_174_735)),
            ("2024-02-29T00:00:00Z", Some(1_709_164_800)),
            ("2023-02-29T00:00:00Z", None),
            ("2023-13-01T00:00:00Z", None),
            ("2023-00-01T00:00:00Z", None),
            ("2023-07-01T24:00:00Z", None),
            ("2023-07-01T01:25:35", None),
            ("2023-07-01T01:25:35.Z", None),
            ("2023-07-01T01:25:35+2:00", None),
            ("2023-07-01T01:25:35Zx", None),
            ("1969-12-31T23:59:59Z", None),
            ("20230701T012535Z", None),
            ("", None),
            ("ä023-07-01T01:25:35Z", None),
        ] {
            assert_eq!(Utc::parse_rfc3339(text), unix, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(unix in 0..=END_OF_9999) {
            prop_assert_eq!(Utc::parse_rfc3339(&Utc::from_unix(unix).rfc3339()), Some(unix));
        }
    }

    #[test]
    fn known_moments_in_both_forms() {
        for (unix, http, rfc3339) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT", "1970-01-01T00:00:00Z"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59 GMT", "2000-02-28T23:59:59Z"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT", "2000-02-29T00:00:00Z"),
            (951_868_800, "Wed, 01 Mar 2000 00:00:00 GMT", "2000-03-01T00:00:00Z"),
            (1_704_067_199, "Sun, 31 Dec 2023 23:59:59 GMT", "2023-12-31T23:59:59Z"),
            (1_719_527_491, "Thu, 27 Jun 2024 22:31:31 GMT", "2024-06-27T22:31:31Z"),
            (4_107_542_399, "Sun, 28 Feb 2100 23:59:59 GMT", "2100-02-28T23:59:59Z"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT", "2100-03-01T00:00:00Z"),
            (253_402_300_799, "Fri, 31 Dec 9999 23:59:59 GMT", "9999-12-31T23:59:59Z"),
            (u64::MAX, "Fri, 31 Dec 9999 23:59:59 GMT", "9999-12-31T23:59:59Z"),
        ] {
            let utc = Utc::from_unix(unix);
            assert_eq!((utc.http_date().as_str(), utc.rfc3339().as_str()), (http, rfc3339), "{unix}");
        }
    }
}
