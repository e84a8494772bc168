//! Parameters of a launch over other parameters of a launch.
//!
//! What a request says takes the place of what its launch template says, and what a version says that of its
//! source. Lists whose elements have names are put together by those: devices, interfaces and tags.

use serde_json::{Map, Value};

/// Lists whose elements have names, and the members that these are.
const NAMED: [(&str, &str); 3] = [
    ("BlockDeviceMappings", "DeviceName"),
    ("NetworkInterfaces", "DeviceIndex"),
    ("TagSpecifications", "ResourceType"),
];
/// Two ways to say the same.
const GROUPS: [&str; 2] = ["SecurityGroupIds", "SecurityGroups"];

/// What `above` and `below` say together; where they differ, `above` holds.
pub(super) fn over(above: &Map<String, Value>, below: &Map<String, Value>) -> Map<String, Value> {
    let mut all = below.clone();
    if GROUPS.iter().any(|name| above.contains_key(*name)) {
        all.retain(|name, _| !GROUPS.contains(&name.as_str()));
    }
    for (name, value) in above {
        let key = NAMED.iter().find(|(list, _)| list == name).map(|(_, key)| *key);
        let value = match (key, value, below.get(name)) {
            (Some(key), Value::Array(above), Some(Value::Array(below))) => named(above, below, key),
            _ => value.clone(),
        };
        all.insert(name.clone(), value);
    }
    all
}

fn named(above: &[Value], below: &[Value], key: &str) -> Value {
    let mut all = below.to_vec();
    for element in above {
        match all.iter_mut().find(|other| other.get(key) == element.get(key)) {
            Some(there) => {
                // Of one kind of resource both may have tags.
                let tags = |of: &Value| of.get("Tags").and_then(Value::as_array).cloned();
                let both = tags(element).zip(tags(there)).map(|(above, below)| named(&above, &below, "Key"));
                *there = element.clone();
                if let Some(both) = both {
                    there["Tags"] = both;
                }
            }
            None => all.push(element.clone()),
        }
    }
    all.into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(above: &Value, below: &Value, expected: &Value) {
        let all = over(above.as_object().unwrap(), below.as_object().unwrap());
        assert_eq!(Value::from(all), *expected);
    }

    #[test]
    fn what_is_above_holds_and_named_elements_are_put_together() {
        check(
            &json!({"InstanceType": "t3.micro", "KeyName": "me"}),
            &json!({"InstanceType": "t3.nano", "UserData": "eA=="}),
            &json!({"InstanceType": "t3.micro", "KeyName": "me", "UserData": "eA=="}),
        );
        let device = |name: &str, size: u64| json!({"DeviceName": name, "Ebs": {"VolumeSize": size}});
        check(
            &json!({"BlockDeviceMappings": [device("/dev/sdf", 3), device("/dev/sdg", 4)]}),
            &json!({"BlockDeviceMappings": [device("/dev/xvda", 1), device("/dev/sdf", 2)]}),
            &json!({"BlockDeviceMappings": [device("/dev/xvda", 1), device("/dev/sdf", 3), device("/dev/sdg", 4)]}),
        );
        check(
            &json!({"NetworkInterfaces": [{"DeviceIndex": 0, "SubnetId": "b"}]}),
            &json!({"NetworkInterfaces": [{"DeviceIndex": 0, "Groups": ["a"]}, {"DeviceIndex": 1}]}),
            &json!({"NetworkInterfaces": [{"DeviceIndex": 0, "SubnetId": "b"}, {"DeviceIndex": 1}]}),
        );
        let tags = |kind: &str, tags: &[(&str, &str)]| {
            let tags: Value = tags.iter().map(|(key, value)| json!({"Key": key, "Value": value})).collect();
            json!({"ResourceType": kind, "Tags": tags})
        };
        check(
            &json!({"TagSpecifications": [tags("instance", &[("a", "1"), ("b", "2")])]}),
            &json!({"TagSpecifications": [tags("volume", &[("v", "0")]), tags("instance", &[("a", "0"), ("c", "0")])]}),
            &json!({"TagSpecifications":
                [tags("volume", &[("v", "0")]), tags("instance", &[("a", "1"), ("c", "0"), ("b", "2")])]}),
        );
    }

    #[test]
    fn groups_by_name_take_the_place_of_groups_by_id() {
        check(
            &json!({"SecurityGroups": ["web"]}),
            &json!({"SecurityGroupIds": ["sg-1"], "ImageId": "ami-1"}),
            &json!({"SecurityGroups": ["web"], "ImageId": "ami-1"}),
        );
    }
}
