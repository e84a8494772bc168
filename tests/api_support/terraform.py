"""Terraform's AWS provider: volumes, snapshots, images and an instance of them, without drift."""

import os
import pathlib
import shutil
import subprocess

from client import DIRECTORY, client, same

ec2 = client("ec2")
base = ec2.register_image(Name="guest", ImageLocation=os.environ["KILN_TEST_IMAGE"])["ImageId"]
ec2.get_waiter("image_available").wait(ImageIds=[base], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
place = pathlib.Path(DIRECTORY) / "terraform"
shutil.copytree(pathlib.Path(__file__).with_name("terraform"), place)
environment = {**os.environ, "CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1", "TF_VAR_image": base}
environment["TF_CLI_CONFIG_FILE"] = "/dev/null"


def terraform(*arguments):
    command = ["terraform", f"-chdir={place}", *arguments, "-no-color"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def succeed(*arguments):
    code, text = terraform(*arguments)
    assert code == 0, f"terraform {arguments}: {text}"
    return text


succeed("init", f"-plugin-dir={os.environ['KILN_TEST_TERRAFORM_PLUGINS']}")
for size, kind in [(1, "gp3"), (2, "gp2")]:
    wanted = ["-var", f"size={size}", "-var", f"type={kind}"]
    text = succeed("apply", "-auto-approve", *wanted)
    assert "1 changed, 0 destroyed" in text or "7 added" in text, text
    # 2: there would be something to change.
    same(terraform("plan", "-detailed-exitcode", *wanted)[0], 0)
    [volume] = ec2.describe_volumes(Filters=[{"Name": "tag:Name", "Values": ["data"]}])["Volumes"]
    same((volume["Size"], volume["VolumeType"]), (size, kind))
assert "7 destroyed" in succeed("destroy", "-auto-approve", *wanted)
same((ec2.describe_volumes()["Volumes"], ec2.describe_snapshots()["Snapshots"]), ([], []))
same([i["ImageId"] for i in ec2.describe_images(Owners=["self"])["Images"]], [base])
print("done")
