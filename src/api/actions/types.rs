//! Instance types.

use kiln_controlplane::metadata::{REGION, ZONE, ZONE_ID};
use kiln_controlplane::network::{MAX_ADDRESSES, MAX_INTERFACES};
use kiln_model::InstanceType;
use serde_json::{Value, json};

use super::attributes::is_burstable;
use super::listing::{self, Filters, listing};
use super::{Answer, Context};
use crate::error::ApiError;

listing!(DescribeInstanceTypes { instance_types: Vec<String> });
listing!(DescribeInstanceTypeOfferings { location_type: Option<String> });

const FILTERS: &Filters = &[
    ("instance-type", "InstanceType"),
    ("current-generation", "CurrentGeneration"),
    ("bare-metal", "BareMetal"),
    ("burstable-performance-supported", "BurstablePerformanceSupported"),
    ("free-tier-eligible", "FreeTierEligible"),
    ("hypervisor", "Hypervisor"),
    ("memory-info.size-in-mib", "MemoryInfo.SizeInMiB"),
    ("processor-info.supported-architecture", "ProcessorInfo.SupportedArchitectures"),
    ("supported-root-device-type", "SupportedRootDeviceTypes"),
    ("supported-usage-class", "SupportedUsageClasses"),
    ("supported-virtualization-type", "SupportedVirtualizationTypes"),
    ("vcpu-info.default-vcpus", "VCpuInfo.DefaultVCpus"),
];

fn shown(of: &InstanceType) -> Value {
    let speed = of.performance();
    let network = format!("Up to {} Gigabit", speed.network_bits / 1_000_000_000);
    json!({
        "InstanceType": of.name, "CurrentGeneration": !of.name.starts_with("t2."), "FreeTierEligible": false,
        "SupportedUsageClasses": ["on-demand"], "SupportedRootDeviceTypes": ["ebs"],
        "SupportedVirtualizationTypes": ["hvm"], "BareMetal": false, "Hypervisor": "nitro",
        "ProcessorInfo": {"SupportedArchitectures": ["x86_64"]},
        "VCpuInfo": {"DefaultVCpus": of.vcpus, "DefaultCores": of.vcpus, "DefaultThreadsPerCore": 1},
        "MemoryInfo": {"SizeInMiB": of.memory.as_bytes() >> 20},
        "InstanceStorageSupported": false,
        "EbsInfo": {
            "EbsOptimizedSupport": "default", "EncryptionSupport": "unsupported", "NvmeSupport": "unsupported",
            "EbsOptimizedInfo": {
                "MaximumBandwidthInMbps": speed.disk_bytes * 8 / 1_000_000,
                "BaselineBandwidthInMbps": speed.disk_bytes * 8 / 1_000_000,
                "MaximumIops": speed.disk_operations, "BaselineIops": speed.disk_operations,
            },
        },
        "NetworkInfo": {
            "NetworkPerformance": network, "MaximumNetworkInterfaces": MAX_INTERFACES,
            "MaximumNetworkCards": 1, "DefaultNetworkCardIndex": 0,
            "NetworkCards": [{
                "NetworkCardIndex": 0, "NetworkPerformance": network, "MaximumNetworkInterfaces": MAX_INTERFACES,
            }],
            "Ipv4AddressesPerInterface": MAX_ADDRESSES, "Ipv6AddressesPerInterface": 1, "Ipv6Supported": true,
            "EnaSupport": "unsupported", "EfaSupported": false,
        },
        // Without it Terraform takes the type for missing.
        "PlacementGroupInfo": {"SupportedStrategies": []},
        "HibernationSupported": false, "BurstablePerformanceSupported": is_burstable(of.name),
        "DedicatedHostsSupported": false, "AutoRecoverySupported": false, "SupportedBootModes": ["legacy-bios"],
    })
}

/// `DescribeInstanceTypes`.
pub(super) fn describe(_: &Context<'_>, mut request: DescribeInstanceTypes) -> Answer {
    let mut items: Vec<_> = InstanceType::all().map(|of| shown(&of)).collect();
    listing::select_names(&mut items, &request.instance_types, "InstanceType", |name| {
        ApiError::new(
            "InvalidInstanceType",
            format!("The following supplied instance types do not exist: [{name}]"),
        )
    })?;
    let mut wish = request.wish();
    // The service has at most 100 of them in a page.
    wish.max_results = wish.max_results.or(Some(100));
    listing::answer(items, wish, FILTERS, "InstanceTypes", "InstanceType")
}

/// `DescribeInstanceTypeOfferings`.
pub(super) fn offerings(_: &Context<'_>, mut request: DescribeInstanceTypeOfferings) -> Answer {
    let (kind, location) = match request.location_type.as_deref() {
        None | Some("region") => ("region", REGION),
        Some("availability-zone") => ("availability-zone", ZONE),
        Some("availability-zone-id") => ("availability-zone-id", ZONE_ID),
        Some(_) => return Err(ApiError::unsupported("There are no outposts")),
    };
    let one = |of: InstanceType| json!({"InstanceType": of.name, "LocationType": kind, "Location": location});
    let table = [("instance-type", "InstanceType"), ("location", "Location")];
    let items = InstanceType::all().map(one).collect();
    listing::answer(items, request.wish(), &table, "InstanceTypeOfferings", "InstanceType")
}
