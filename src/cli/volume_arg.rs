//! `--volume` of `kiln run`: a volume besides the root volume, as `KEY=VALUE` pairs separated by commas.
//!
//! ```text
//!  size=20,device=/dev/sdf,keep     snapshot=snap-0f724cce28ee4aa78     device=/dev/sdg,none
//! ```

use std::str::FromStr;

use kiln_controlplane::volumes::{DeviceWish, is_root_device};

use crate::args::gibibytes;

/// A volume of a new instance. Without `device` it gets the first free one from `/dev/sdf` on.
#[derive(Debug, Clone, Default)]
pub struct VolumeArg(pub DeviceWish);

impl FromStr for VolumeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut wish = DeviceWish::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').map_or((part, None), |(key, value)| (key, Some(value)));
            let once = |given: bool| if given { Err(format!("{key} is given twice")) } else { Ok(()) };
            match (key, value) {
                ("size", Some(size)) => {
                    once(wish.size.is_some())?;
                    wish.size = Some(gibibytes(size).map_err(|e| e.to_string())?);
                }
                ("device", Some(device)) if !device.is_empty() => {
                    once(!wish.device.is_empty())?;
                    if is_root_device(device) {
                        return Err(format!("{device} is the root volume (see --volume-size)"));
                    }
                    wish.device = device.to_owned();
                }
                ("snapshot", Some(snapshot)) => {
                    once(wish.snapshot.is_some())?;
                    let id = snapshot.parse().map_err(|_| format!("{snapshot:?} is not a snapshot's id"))?;
                    wish.snapshot = Some(id);
                }
                ("keep", None) => {
                    once(wish.delete_on_termination.is_some())?;
                    wish.delete_on_termination = Some(false);
                }
                ("none", None) => {
                    once(wish.none)?;
                    wish.none = true;
                }
                _ => {
                    return Err(format!(
                        "{part:?} says nothing of a volume (expected size=SIZE, snapshot=SNAP-ID, device=/dev/sdf, \
                         keep or none)"
                    ));
                }
            }
        }
        let silent = wish.size.is_none() && wish.snapshot.is_none();
        if wish.none && (!silent || wish.delete_on_termination.is_some() || wish.device.is_empty()) {
            return Err("none goes with the device of the image that shall not be there".to_owned());
        }
        if silent && wish.device.is_empty() {
            return Err(
                "a volume needs a size or a snapshot, or the device of one that the image has".to_owned()
            );
        }
        Ok(VolumeArg(wish))
    }
}

/// The wishes, each with a device.
pub fn with_devices(arguments: &[VolumeArg]) -> Vec<DeviceWish> {
    let mut wishes: Vec<DeviceWish> = arguments.iter().map(|argument| argument.0.clone()).collect();
    let said: Vec<String> = wishes.iter().map(|wish| wish.device.clone()).collect();
    let last = |device: &str| device.chars().last();
    let free = ('f'..='z').filter(|letter| !said.iter().any(|device| last(device) == Some(*letter)));
    for (wish, letter) in wishes.iter_mut().filter(|wish| wish.device.is_empty()).zip(free) {
        wish.device = format!("/dev/sd{letter}");
    }
    wishes
}

#[cfg(test)]
mod tests {
    use kiln_model::size::GIB;

    use super::*;

    #[test]
    fn parts_are_read_in_any_order_and_devices_are_found() {
        let read = |text: &str| text.parse::<VolumeArg>().unwrap();
        let all = [
            read("size=20,keep"),
            read("snapshot=snap-0f724cce28ee4aa78,device=/dev/sdf"),
            read("size=512M"),
        ];
        let wishes = with_devices(&all);
        let devices: Vec<_> = wishes.iter().map(|wish| wish.device.as_str()).collect();
        assert_eq!(devices, ["/dev/sdg", "/dev/sdf", "/dev/sdh"]);
        assert_eq!(wishes[0].size.map(kiln_model::ByteSize::as_bytes), Some(20 * GIB));
        assert_eq!(wishes[0].delete_on_termination, Some(false));
        assert_eq!(wishes[1].snapshot.unwrap().to_string(), "snap-0f724cce28ee4aa78");
        assert!(read("device=/dev/sdg,none").0.none);
    }

    #[test]
    fn nonsense_is_named() {
        for (text, word) in [
            ("", "needs a size or a snapshot"),
            ("keep", "needs a size or a snapshot"),
            ("size=0x", "size"),
            ("size=1,size=2", "size is given twice"),
            ("snapshot=vol-1", "not a snapshot's id"),
            ("size=1,device=/dev/xvda", "root volume"),
            ("none", "none goes with"),
            ("size=1,none,device=/dev/sdf", "none goes with"),
            ("disk", "\"disk\" says nothing"),
        ] {
            let error = text.parse::<VolumeArg>().unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
