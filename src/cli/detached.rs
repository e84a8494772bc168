//! `kiln run --detach`: an instance of `kilnd`, asked for by `RunInstances`.
//!
//! What the API wants by id is looked up or made first: the image (imported, if it is a path), the key pair
//! of `--ssh-key`, the subnet, and the groups. Without `--security-group` the instance is in `default` and in
//! a group of this command, which lets this host in, as `kiln run` has it too.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_controlplane::images::{Drivers, ImageError, ImportRequest};
use kiln_controlplane::instances::{ControlPlane, LaunchRequest};
use kiln_controlplane::key_pairs::{KeyPairError, KeyPairs};
use kiln_controlplane::network::{DEFAULT_GROUP, NetworkError, PeerSpec, RuleSpec, Subnet};
use kiln_controlplane::volumes::{DeviceWish, ROOT_DEVICE};
use kiln_model::security::{Direction, Traffic};
use kiln_model::size::GIB;
use kiln_model::{ImageId, SecurityGroupId, SshPublicKey, Tag};
use kiln_vmspec::{HttpTokens, MetadataOptions};

use crate::args::RunArgs;
use crate::daemon::{Daemon, Parameters};
use crate::error::Failure;
use crate::lifecycle::until_running;
use crate::progress::Bars;
use crate::{open, run};

/// Group that lets this host in.
const HOST_GROUP: &str = "this-host";
/// Names that are tried for a key pair.
const KEY_NAMES: u32 = 1000;

/// Launches it and waits until it runs. Prints its id.
pub fn run(state_dir: &Path, args: &RunArgs) -> Result<(), Failure> {
    let request = run::request(args)?;
    let plane = open(state_dir)?;
    let daemon = Daemon::need(&plane, "run an instance with --detach")?;
    let parameters = parameters(&plane, args, &request)?;
    let answer = daemon.call("RunInstances", parameters)?;
    let instance = plane.find(&answer.text("instanceId")?)?;
    until_running(&plane, &instance)?;
    crate::print(&format!("{}\n", instance.id))
}

fn parameters(plane: &ControlPlane, args: &RunArgs, request: &LaunchRequest) -> Result<Parameters, Failure> {
    let size = request.volume_size.map(|size| size.as_bytes());
    if size.is_some_and(|bytes| bytes % GIB != 0) {
        return Err(Failure::new("with --detach, --volume-size is a whole number of GiB"));
    }
    let subnet = subnet(plane, args.subnet.as_deref())?;
    let key = match (&args.ssh_key, &request.ssh_key) {
        (Some(path), Some(key)) => Some(key_pair(plane, path, key)?),
        _ => None,
    };
    let interface = "NetworkInterface.1";
    let mut parameters = Parameters::default()
        .with("ImageId", image(plane, args)?)
        .with("InstanceType", &request.instance_type)
        .with("MinCount", 1)
        .with("MaxCount", 1)
        .with(format!("{interface}.DeviceIndex"), 0)
        .with(format!("{interface}.SubnetId"), subnet.id)
        .list(&format!("{interface}.SecurityGroupId"), groups(plane, &subnet, args)?)
        .with(format!("{interface}.AssociatePublicIpAddress"), args.public_ip)
        .maybe(&format!("{interface}.PrivateIpAddress"), args.private_ip)
        .maybe("KeyName", key)
        .maybe("UserData", request.user_data.as_ref().map(|data| STANDARD.encode(data.as_bytes())))
        .maybe("IamInstanceProfile.Name", args.role.as_ref())
        .maybe("BlockDeviceMapping.1.DeviceName", size.map(|_| ROOT_DEVICE))
        .maybe("BlockDeviceMapping.1.Ebs.VolumeSize", size.map(|bytes| bytes / GIB));
    let first = if size.is_some() { 2 } else { 1 };
    parameters = volumes(parameters, first, &request.volumes)?;
    parameters = options(parameters, request.metadata_options);
    let name = args.name.iter().map(|name| ("Name", name.as_str()));
    let tags = name.chain(args.tags.iter().map(|tag: &Tag| (tag.key(), tag.value())));
    for (number, (key, value)) in (1u32..).zip(tags) {
        let specification = "TagSpecification.1";
        parameters = parameters
            .maybe(&format!("{specification}.ResourceType"), (number == 1).then_some("instance"))
            .with(format!("{specification}.Tag.{number}.Key"), key)
            .with(format!("{specification}.Tag.{number}.Value"), value);
    }
    Ok(parameters)
}

/// Mappings of volumes besides the root volume, numbered from `first`.
fn volumes(mut parameters: Parameters, first: u32, wishes: &[DeviceWish]) -> Result<Parameters, Failure> {
    for (number, wish) in (first..).zip(wishes) {
        let mapping = format!("BlockDeviceMapping.{number}");
        let size = wish.size.map(|size| size.as_bytes());
        if size.is_some_and(|bytes| bytes % GIB != 0) {
            return Err(Failure::new("with --detach, the size of a --volume is a whole number of GiB"));
        }
        parameters = parameters
            .with(format!("{mapping}.DeviceName"), &wish.device)
            .maybe(&format!("{mapping}.NoDevice"), wish.none.then_some("true"))
            .maybe(&format!("{mapping}.Ebs.VolumeSize"), size.map(|bytes| bytes / GIB))
            .maybe(&format!("{mapping}.Ebs.SnapshotId"), wish.snapshot)
            .maybe(&format!("{mapping}.Ebs.DeleteOnTermination"), wish.delete_on_termination);
    }
    Ok(parameters)
}

fn options(parameters: Parameters, options: MetadataOptions) -> Parameters {
    let switch = |on| if on { "enabled" } else { "disabled" };
    parameters
        .with(
            "MetadataOptions.HttpTokens",
            if options.tokens == HttpTokens::Required { "required" } else { "optional" },
        )
        .with("MetadataOptions.HttpPutResponseHopLimit", options.hop_limit)
        .with("MetadataOptions.HttpEndpoint", switch(options.endpoint_enabled))
        .with("MetadataOptions.HttpProtocolIpv6", switch(options.ipv6_enabled))
        .with("MetadataOptions.InstanceMetadataTags", switch(options.tags_enabled))
}

/// The image meant: one that is there, or a file, which is imported.
fn image(plane: &ControlPlane, args: &RunArgs) -> Result<ImageId, Failure> {
    let is_path = args.image.contains('/');
    // Image names hold no slash, so with one a file is meant.
    if !is_path {
        match plane.images().find(&args.image) {
            Ok(image) => return Ok(image.id),
            Err(ImageError::NotFound { .. }) if Path::new(&args.image).exists() => {}
            Err(e) => return Err(e.into()),
        }
    }
    let format = args.format.map(Into::into);
    let request = ImportRequest {
        path: args.image.clone().into(),
        format,
        name: None,
        replace: false,
        drivers: Drivers::default(),
    };
    Ok(plane.images().import(&request, plane.clock(), &Bars)?.id)
}

fn subnet(plane: &ControlPlane, wanted: Option<&str>) -> Result<Subnet, Failure> {
    let networks = plane.networks();
    let default = networks.default_subnet()?;
    let Some(wanted) = wanted else { return Ok(default) };
    let is = |subnet: &Subnet| subnet.id.to_string() == wanted || subnet.name.as_deref() == Some(wanted);
    let found = networks.subnets()?.into_iter().find(is);
    Ok(found.ok_or_else(|| NetworkError::NoSubnet(wanted.to_owned()))?)
}

fn groups(plane: &ControlPlane, subnet: &Subnet, args: &RunArgs) -> Result<Vec<SecurityGroupId>, Failure> {
    let networks = plane.networks();
    let find = |name: &str| networks.find_group(subnet.vpc, name);
    if !args.security_group.is_empty() {
        return Ok(args
            .security_group
            .iter()
            .map(|name| Ok(find(name)?.id))
            .collect::<Result<_, NetworkError>>()?);
    }
    let host = match find(HOST_GROUP) {
        Err(NetworkError::NoGroup { .. }) => {
            let text = "kiln run --detach: this host may connect to everything";
            match networks.create_group(subnet.vpc, HOST_GROUP, text) {
                // Another command was faster.
                Err(NetworkError::GroupExists { .. }) => find(HOST_GROUP)?.id,
                made => {
                    let id = made?.id;
                    let rule = RuleSpec { traffic: Traffic::All, peer: PeerSpec::Host, description: None };
                    networks.authorize(id, Direction::Ingress, &[rule])?;
                    id
                }
            }
        }
        found => found?.id,
    };
    Ok(vec![find(DEFAULT_GROUP)?.id, host])
}

/// Name of the key pair of a public key; imports it if there is none, named after its file.
fn key_pair(plane: &ControlPlane, path: &Path, key: &SshPublicKey) -> Result<String, Failure> {
    let pairs = KeyPairs { store: plane.store(), now: plane.clock().unix_seconds() };
    if let Some(pair) = pairs.list()?.into_iter().find(|pair| pair.public.is_same_key(key)) {
        return Ok(pair.name);
    }
    let stem = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    let numbered = (2..KEY_NAMES).map(|number| format!("{stem}-{number}"));
    for name in std::iter::once(stem.clone()).chain(numbered) {
        match pairs.import(&name, &key.to_string(), &[]) {
            Ok(pair) => return Ok(pair.name),
            Err(KeyPairError::Exists(_)) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(KeyPairError::Exists(stem).into())
}
