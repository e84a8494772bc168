//! SMBIOS as an EC2 instance shows it.
//!
//! | structure | what looks at it |
//! |---|---|
//! | type 1 UUID and serial, both `ec2…` and equal | cloud-init, to choose its Ec2 data source |
//! | type 1 manufacturer, type 3 asset tag | agents and inventory tools |
//! | type 1 product name = instance type | agents |
//! | type 2 asset tag = instance id | Instance Connect |

use kiln_vmspec::SmbiosSpec;

use super::Instance;

const VENDOR: &str = "Amazon EC2";

/// The strings of one instance.
pub(super) fn ec2_profile(instance: &Instance) -> SmbiosSpec {
    SmbiosSpec {
        manufacturer: VENDOR.to_owned(),
        product_name: instance.instance_type.clone(),
        uuid: instance.uuid.clone(),
        serial: instance.uuid.clone(),
        board_asset_tag: instance.id.to_string(),
        chassis_asset_tag: VENDOR.to_owned(),
        bios_version: "1.0".to_owned(),
        bios_date: "10/16/2017".to_owned(),
    }
}

/// A UUID that prints as `ec2…`, from 128 random bits. Version and variant are those of RFC 9562
/// version 4.
pub(super) fn new_uuid(bits: u128) -> String {
    const EC2: u128 = 0xec2 << 116;
    const VERSION: u128 = 0x4 << 76;
    const VARIANT: u128 = 0x2 << 62;
    let bits = (bits & !(0xfff << 116) & !(0xf << 76) & !(0x3 << 62)) | EC2 | VERSION | VARIANT;
    let text = format!("{bits:032x}");
    let part = |range| text.get(range).unwrap_or_default();
    format!("{}-{}-{}-{}-{}", part(0..8), part(8..12), part(12..16), part(16..20), part(20..32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_starts_with_ec2_whatever_the_bits() {
        assert_eq!(new_uuid(0), "ec200000-0000-4000-8000-000000000000");
        assert_eq!(new_uuid(u128::MAX), "ec2fffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(
            new_uuid(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
            "ec234567-89ab-4def-8123-456789abcdef"
        );
    }
}
