"""An image of a file, and a volume with a token, before and after the daemon was killed."""

import os

from client import client, code, same

ec2 = client("ec2")
location, soon = os.environ["KILN_TEST_IMAGE"], {"Delay": 1, "MaxAttempts": 300}
volume = {"AvailabilityZone": "us-east-1a", "Size": 1, "ClientToken": "once",
          "TagSpecifications": [{"ResourceType": "volume", "Tags": [{"Key": "a", "Value": "b"}]}]}

if os.environ["KILN_TEST_PHASE"] == "before":
    ec2.create_volume(**volume)
    ec2.register_image(Name="large", ImageLocation=location)
    same(len(ec2.describe_images(Owners=["self"])["Images"]), 1)
else:
    same(code(ec2.register_image, Name="large", ImageLocation=location), "InvalidAMIName.Duplicate")
    image = ec2.describe_images(Owners=["self"])["Images"][0]["ImageId"]
    ec2.get_waiter("image_available").wait(ImageIds=[image], WaiterConfig=soon)
    again = ec2.create_volume(**volume)
    same([v["VolumeId"] for v in ec2.describe_volumes()["Volumes"]], [again["VolumeId"]])
    same((again["State"], again["Tags"]), ("available", [{"Key": "a", "Value": "b"}]))
print("done")
