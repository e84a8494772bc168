//! The decoder and the writer on what clients send and on what nobody should.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::schema::{SERVICES, Service, Shape};

fn input(action: &str) -> &'static Shape {
    SERVICES.iter().find_map(|service| service.operation(action)).unwrap().input
}

fn read(action: &str, form: &str) -> Result<Value, DecodeError> {
    decode(input(action), &parse(form).unwrap(), &["Action", "Version"])
}

fn code(action: &str, form: &str) -> &'static str {
    read(action, form).err().map_or("no error", |e| e.code())
}

#[test]
fn lists_are_flat_in_ec2_and_have_member_in_iam() {
    let form = "Action=AuthorizeSecurityGroupIngress&GroupId=sg-1&IpPermissions.1.IpRanges.2.CidrIp=b\
                &IpPermissions.1.IpRanges.1.CidrIp=a&IpPermissions.1.FromPort=-1&IpPermissions.1.Groups.1.GroupId=g\
                &TagSpecification.1.ResourceType=security-group-rule&TagSpecification.1.Tag.1.Key=Name\
                &TagSpecification.1.Tag.1.Value=a+b%26&Version=2016-11-15";
    assert_eq!(
        read("AuthorizeSecurityGroupIngress", form).unwrap(),
        json!({
            "GroupId": "sg-1",
            "IpPermissions": [{
                "FromPort": -1, "IpRanges": [{"CidrIp": "a"}, {"CidrIp": "b"}], "UserIdGroupPairs": [{"GroupId": "g"}],
            }],
            "TagSpecifications": [{
                "ResourceType": "security-group-rule", "Tags": [{"Key": "Name", "Value": "a b&"}],
            }],
        })
    );
    let form = "RoleArn=arn:aws:iam::000000000000:role/x&RoleSessionName=me&Tags.member.1.Key=k&Tags.member.1.Value=v";
    assert_eq!(read("AssumeRole", form).unwrap()["Tags"], json!([{"Key": "k", "Value": "v"}]));
}

#[test]
fn empty_values_are_absent() {
    let form = "VpcId=vpc-1&CidrBlock=&AvailabilityZone=&TagSpecification.1.ResourceType=";
    assert_eq!(read("CreateSubnet", form).unwrap(), json!({"VpcId": "vpc-1"}));
    assert_eq!(code("CreateSubnet", "CidrBlock=10.0.0.0/24"), "MissingParameter");
    assert_eq!(code("ImportKeyPair", "KeyName=k&PublicKeyMaterial="), "MissingParameter");
    // But where being there is what is said.
    let form =
        "MinCount=1&MaxCount=1&KeyName=&BlockDeviceMapping.1.DeviceName=x&BlockDeviceMapping.1.NoDevice=";
    let mappings = json!([{"DeviceName": "x", "NoDevice": ""}]);
    assert_eq!(
        read("RunInstances", form).unwrap(),
        json!({"MinCount": 1, "MaxCount": 1, "BlockDeviceMappings": mappings})
    );
}

#[test]
fn what_the_model_does_not_know_is_refused() {
    for form in ["Wrong=1", "Filter.1.Value.x=1", "Filter.0.Name=a", "VpcId.1.2=x", "Filter.1.Wrong=1"] {
        assert_eq!(code("DescribeVpcs", form), "UnknownParameter", "{form}");
    }
    let deep = "VpcId.1".to_owned() + &".1".repeat(20) + "=x";
    assert_eq!(code("DescribeVpcs", &deep), "UnknownParameter");
    for form in ["MaxResults=many", "MaxResults=4", "DryRun=perhaps", "VpcId.1=a&VpcId.1=b", "VpcId=a"] {
        assert_eq!(code("DescribeVpcs", form), "InvalidParameterValue", "{form}");
    }
    assert_eq!(code("AllocateAddress", "Domain=moon"), "InvalidParameterValue");
    assert_eq!(code("ImportKeyPair", "KeyName=k&PublicKeyMaterial=!!"), "InvalidParameterValue");
    let error = read("DescribeVpcs", "Filter.1.Wrong=1").unwrap_err().to_string();
    assert_eq!(error, "The parameter Filter.1.Wrong is not recognized");
}

#[test]
fn forms_that_are_none_are_refused() {
    assert_eq!(parse("a=%zz"), Err(FormError::Encoding));
    assert_eq!(parse("a=%f"), Err(FormError::Encoding));
    assert_eq!(parse("a=%ff"), Err(FormError::Utf8));
    assert_eq!(parse(&"a=1&".repeat(5000)), Err(FormError::TooMany));
    assert_eq!(parse(&"a".repeat(300)), Err(FormError::LongName));
    // The name counts as it is meant: as it is written, it may be three times as long.
    assert_eq!(parse(&"%00".repeat(100)), Ok(vec![("\0".repeat(100), String::new())]));
    assert_eq!(parse("&&b").unwrap(), [("b".to_owned(), String::new())]);
}

#[test]
fn answer_has_the_names_of_the_model_and_hostile_text_is_escaped() {
    let shape = Service::find("ec2").unwrap().operation("DescribeVpcs").unwrap().output;
    let mut out = String::new();
    let tag = json!({"Key": "a<b>&\"'", "Value": "x\u{0}\u{1b}\r\n]]>"});
    write(shape, &json!({"Vpcs": [{"VpcId": "vpc-1", "IsDefault": true, "Tags": [tag]}]}), &mut out).unwrap();
    assert_eq!(
        out,
        "<vpcSet><item><isDefault>true</isDefault><tagSet><item><key>a&lt;b&gt;&amp;&quot;&apos;</key>\
         <value>x\u{fffd}\u{fffd}&#13;&#10;]]&gt;</value></item></tagSet><vpcId>vpc-1</vpcId></item></vpcSet>"
    );
    for wrong in [json!({"Vpc": 1}), json!({"Vpcs": [{"IsDefault": "yes"}]}), json!({"Vpcs": [{"State": 1}]})]
    {
        assert!(write(shape, &wrong, &mut String::new()).is_err(), "{wrong}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_form_is_refused_or_fits_its_shape(
        which in 0usize..1000,
        form in "((Filter|VpcId|Tag|Ebs|BlockDeviceMapping|[A-Z][a-z]{0,3})(\\.(Name|Value|member|[0-3]|[A-Z]a)){0,4}=[%+a-f0-9]{0,4}&){0,6}|.{0,64}",
    ) {
        let all: Vec<_> = SERVICES.iter().flat_map(|service| service.operations).collect();
        let operation = all[which % all.len()];
        if let Ok(parameters) = parse(&form)
            && let Ok(value) = decode(operation.input, &parameters, &[])
        {
            prop_assert!(fits(operation.input, &value));
        }
    }
}

fn fits(shape: &Shape, value: &Value) -> bool {
    match (shape, value) {
        (Shape::Structure(_), Value::Object(object)) => object
            .iter()
            .all(|(name, value)| shape.member(name).is_some_and(|member| fits(member.shape, value))),
        (Shape::List(list), Value::Array(elements)) => elements.iter().all(|value| fits(list.shape, value)),
        (Shape::Integer(_), value) => value.is_i64(),
        (Shape::Number, value) => value.is_f64(),
        (Shape::Boolean, value) => value.is_boolean(),
        (_, value) => value.is_string(),
    }
}
