//! Internet gateways.

use kiln_controlplane::metadata::ACCOUNT;
use kiln_controlplane::network::InternetGateway;
use kiln_controlplane::tags;
use kiln_model::{InternetGatewayId, VpcId};
use serde_json::{Value, json};

use super::ids::{GATEWAY, VPC};
use super::listing::{self, Filters, listing};
use super::tagging::{self, TagMap, TagSpecification};
use super::{Answer, Context, done, input};

input!(CreateInternetGateway { tag_specifications: Vec<TagSpecification> });
input!(Attachment { internet_gateway_id: String, vpc_id: String });
input!(DeleteInternetGateway { internet_gateway_id: String });
listing!(DescribeInternetGateways { internet_gateway_ids: Vec<String> });

const FILTERS: &Filters = &[
    ("internet-gateway-id", "InternetGatewayId"),
    ("owner-id", "OwnerId"),
    ("attachment.vpc-id", "Attachments.VpcId"),
    ("attachment.state", "Attachments.State"),
];

fn shown(gateway: &InternetGateway, tags: &TagMap) -> Value {
    let id = gateway.id.to_string();
    let attachment = |vpc: &VpcId| json!({"VpcId": vpc.to_string(), "State": "available"});
    json!({
        "InternetGatewayId": id, "OwnerId": ACCOUNT, "Tags": tagging::shown_with_name(tags, &id, None),
        "Attachments": gateway.vpc.iter().map(attachment).collect::<Vec<_>>(),
    })
}

/// `CreateInternetGateway`.
pub(super) fn create(context: &Context<'_>, request: CreateInternetGateway) -> Answer {
    let tags = tagging::specified(request.tag_specifications, "internet-gateway")?;
    let gateway =
        context.plane.networks().create_internet_gateway(&mut |tx, id| tagging::set_new(tx, id, &tags))?;
    Ok(json!({"InternetGateway": shown(&gateway, &tagging::read(context)?)}))
}

/// `AttachInternetGateway`.
pub(super) fn attach(context: &Context<'_>, request: Attachment) -> Answer {
    let id: InternetGatewayId = GATEWAY.parse(&request.internet_gateway_id)?;
    context.plane.networks().attach_internet_gateway(id, VPC.parse(&request.vpc_id)?)?;
    done()
}

/// `DetachInternetGateway`.
pub(super) fn detach(context: &Context<'_>, request: Attachment) -> Answer {
    let id: InternetGatewayId = GATEWAY.parse(&request.internet_gateway_id)?;
    context.plane.networks().detach_internet_gateway(id, VPC.parse(&request.vpc_id)?)?;
    done()
}

/// `DeleteInternetGateway`.
pub(super) fn delete(context: &Context<'_>, request: DeleteInternetGateway) -> Answer {
    let id: InternetGatewayId = GATEWAY.parse(&request.internet_gateway_id)?;
    context.plane.networks().delete_internet_gateway(id)?;
    tags::forget(context.plane.store(), &request.internet_gateway_id)?;
    done()
}

/// `DescribeInternetGateways`.
pub(super) fn describe(context: &Context<'_>, mut request: DescribeInternetGateways) -> Answer {
    // The default VPC, with its gateway, is always there.
    super::vpcs::default_id(context)?;
    let tags = tagging::read(context)?;
    let gateways = context.plane.networks().internet_gateways()?;
    let mut items: Vec<_> = gateways.iter().map(|gateway| shown(gateway, &tags)).collect();
    listing::select(&mut items, &request.internet_gateway_ids, "InternetGatewayId", GATEWAY)?;
    listing::answer(items, request.wish(), FILTERS, "InternetGateways", "InternetGatewayId")
}
