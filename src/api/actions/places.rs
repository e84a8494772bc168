//! Where this host is said to be, and what the account may have.

use kiln_controlplane::metadata::{REGION, ZONE, ZONE_ID};
use serde_json::json;

use super::listing::{self, Filter, Wish};
use super::{Answer, Context, input};
use crate::error::ApiError;

input!(DescribeRegions { region_names: Vec<String>, all_regions: bool, filters: Vec<Filter> });
input!(DescribeAvailabilityZones { zone_names: Vec<String>, zone_ids: Vec<String>, all_availability_zones: bool,
    filters: Vec<Filter> });
input!(DescribeAccountAttributes { attribute_names: Vec<String> });

fn wish(filters: Vec<Filter>) -> Wish {
    Wish { filters, ..Wish::default() }
}

fn no_region(name: &str) -> ApiError {
    ApiError::value(format!("Invalid region provided: '{name}'"))
}

fn no_zone(name: &str) -> ApiError {
    ApiError::value(format!("Invalid availability zone: [{name}]"))
}

/// `DescribeRegions`.
pub(super) fn regions(_: &Context<'_>, request: DescribeRegions) -> Answer {
    let region = json!({
        "RegionName": REGION, "Endpoint": format!("ec2.{REGION}.amazonaws.com"), "OptInStatus": "opt-in-not-required",
    });
    let mut items = vec![region];
    listing::select_names(&mut items, &request.region_names, "RegionName", no_region)?;
    let table = [("region-name", "RegionName"), ("endpoint", "Endpoint"), ("opt-in-status", "OptInStatus")];
    listing::answer(items, wish(request.filters), &table, "Regions", "RegionName")
}

/// `DescribeAvailabilityZones`.
pub(super) fn zones(_: &Context<'_>, request: DescribeAvailabilityZones) -> Answer {
    let mut items = vec![json!({
        "RegionName": REGION, "ZoneName": ZONE, "ZoneId": ZONE_ID, "State": "available", "Messages": [],
        "OptInStatus": "opt-in-not-required", "ZoneType": "availability-zone", "GroupName": REGION,
        "NetworkBorderGroup": REGION,
    })];
    listing::select_names(&mut items, &request.zone_names, "ZoneName", no_zone)?;
    listing::select_names(&mut items, &request.zone_ids, "ZoneId", no_zone)?;
    let table = [
        ("region-name", "RegionName"),
        ("zone-name", "ZoneName"),
        ("zone-id", "ZoneId"),
        ("zone-type", "ZoneType"),
        ("state", "State"),
        ("group-name", "GroupName"),
        ("opt-in-status", "OptInStatus"),
        ("network-border-group", "NetworkBorderGroup"),
    ];
    listing::answer(items, wish(request.filters), &table, "AvailabilityZones", "ZoneName")
}

/// `DescribeAccountAttributes`.
pub(super) fn account_attributes(context: &Context<'_>, request: DescribeAccountAttributes) -> Answer {
    let attribute = |name: &str, value: &str| json!({"AttributeName": name, "AttributeValues": [{"AttributeValue": value}]});
    let default = super::vpcs::default_id(context)?;
    let mut items = vec![
        attribute("default-vpc", &default.to_string()),
        attribute("max-elastic-ips", "5"),
        attribute("supported-platforms", "VPC"),
        attribute("vpc-max-elastic-ips", "5"),
        attribute("vpc-max-security-groups-per-interface", "5"),
    ];
    let none = |name: &str| ApiError::value(format!("Invalid attribute name: {name}"));
    // Of a time before VPCs: known, and not there.
    let wanted: Vec<_> = request.attribute_names.into_iter().filter(|name| name != "max-instances").collect();
    listing::select_names(&mut items, &wanted, "AttributeName", none)?;
    listing::answer(items, Wish::default(), &[], "AccountAttributes", "AttributeName")
}
