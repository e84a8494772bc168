//! The unmodified distribution image, booted by `kiln run`: cloud-init, login, disk integrity.
//!
//! Needs the lab: see `support`. One boot takes minutes there, so one test looks at everything.

mod support;

use std::net::Ipv4Addr;
use std::process::Command;

use support::run::Desk;

/// Python under emulation is slow; this tells a hang from a slow machine.
const BOOT: u64 = 900;

/// What cloud-init is given: a script and a cloud-config in one multipart message.
const USER_DATA: &str = r#"Content-Type: multipart/mixed; boundary="=====kiln====="
MIME-Version: 1.0

--=====kiln=====
Content-Type: text/cloud-config; charset="us-ascii"
MIME-Version: 1.0
Content-Transfer-Encoding: 7bit
Content-Disposition: attachment; filename="config.yaml"

#cloud-config
write_files:
- path: /etc/from-cloud-config
  content: written by cloud-config

--=====kiln=====
Content-Type: text/x-shellscript; charset="us-ascii"
MIME-Version: 1.0
Content-Transfer-Encoding: 7bit
Content-Disposition: attachment; filename="setup.sh"

#!/bin/sh
echo "user data ran as $(id -un)" | tee /var/log/user-data > /dev/ttyS0

--=====kiln=====--
"#;

/// A network namespace behind the guest, as containers have them; in a range that no VPC is given by itself.
const CONTAINER: &str = "sudo sh -e -c 'ip netns add box; ip link add box0 type veth peer name eth0 netns box; \
    ip addr add 192.168.37.1/30 dev box0; ip link set box0 up; ip -n box addr add 192.168.37.2/30 dev eth0; \
    ip -n box link set eth0 up; ip -n box route add default via 192.168.37.1; sysctl -q -w net.ipv4.ip_forward=1; \
    nft add table ip nat; nft add chain ip nat post \"{ type nat hook postrouting priority 100; }\"; \
    nft add rule ip nat post ip saddr 192.168.37.0/30 masquerade'";
/// Asks for a token from there; prints the status of the answer, 000 without any.
const TOKEN: &str = "sudo ip netns exec box curl -s -o /dev/null -m 15 -w '%{http_code}' -X PUT \
    -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' http://169.254.169.254/latest/api/token || true";

/// fio's own check of every block it wrote, from two jobs at depth 8 on both queues. Few blocks: each
/// costs dozens of exits, and under emulation each exit is slow.
const VERIFY: &str = "sudo fio --name=verify --directory=/var/tmp --size=2m --numjobs=2 --rw=randwrite --bs=4k \
    --direct=1 --ioengine=libaio --iodepth=8 --verify=crc32c --do_verify=1 --verify_fatal=1 --group_reporting --minimal \
    >/dev/null && echo verified";

#[test]
fn cloud_init_finishes_and_the_disk_keeps_its_word() {
    let image = lab_image!("debian-12");
    let desk = Desk::new();
    let plain = desk.write("user-data", USER_DATA);
    let gzip = Command::new("gzip").args(["-9", "-n", &plain]).status().unwrap();
    assert!(gzip.success(), "gzip: {gzip}");
    let user_data = format!("{plain}.gz");
    let mut run = desk
        .run(&image, &["--memory", "1G", "--vcpus", "2", "--volume-size", "4G", "--user-data", &user_data]);
    run.expect("user data ran as root", BOOT);
    let address: Ipv4Addr = desk.instance()["private_ip"].as_str().unwrap().parse().unwrap();
    let ssh = |run: &mut support::run::Run, script: &str| run.ssh("debian", address, script);

    let status = ssh(&mut run, "cloud-init status --wait --long; cat /run/cloud-init/result.json; cloud-id");
    assert!(status.contains("status: done"), "{status}");
    assert!(status.contains("DataSourceEc2"), "{status}");
    assert!(status.contains("\"errors\": []"), "{status}");
    assert!(status.trim_end().ends_with("aws"), "{status}");
    // One of the stock packages is not about us: see the image's description.
    assert_eq!(ssh(&mut run, "grep WARNING /var/log/cloud-init.log | grep -v netplan || true"), "");
    // Both parts of the user data, which were packed and wrapped.
    assert_eq!(ssh(&mut run, "cat /var/log/user-data"), "user data ran as root\n");
    assert_eq!(ssh(&mut run, "cat /etc/from-cloud-config").trim_end(), "written by cloud-config");
    assert_eq!(ssh(&mut run, "sudo cloud-init query userdata").trim_end(), USER_DATA.trim_end());

    // The metadata as a program in the guest gets them, with a token as they must.
    let id = desk.instance()["id"].as_str().unwrap().to_owned();
    let script = "T=$(curl -sf -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' http://169.254.169.254/latest/api/token); \
         curl -sf -H \"X-aws-ec2-metadata-token: $T\" http://169.254.169.254/latest/meta-data/instance-id; \
         curl -s -o /dev/null -w ' %{http_code}' http://169.254.169.254/latest/meta-data/instance-id";
    assert_eq!(ssh(&mut run, script), format!("{id} 401"));
    let query = "cloud-init query --format '{{ds.meta_data.instance_id}} {{ds.meta_data.local_ipv4}}'";
    let queried = ssh(&mut run, query);
    assert_eq!(queried.split_whitespace().collect::<Vec<_>>(), [id.clone(), address.to_string()]);

    // A container behind the guest gets a token only where the hop limit says so.
    ssh(&mut run, CONTAINER);
    assert_eq!(ssh(&mut run, TOKEN), "200", "a hop further, at the limit of 2 that a run has");
    let lowered = desk.kiln().args(["metadata", &id, "--set", "hop-limit=1"]).status().unwrap();
    assert!(lowered.success(), "{lowered}");
    assert_eq!(ssh(&mut run, TOKEN), "000", "a hop further, at limit 1");

    // cloud-init and the stock initramfs grew the root file system to the volume.
    let blocks: u64 = ssh(&mut run, "df --output=size -m / | tail -n 1").trim().parse().unwrap();
    assert!(blocks > 3500, "{blocks} MiB");
    assert_eq!(ssh(&mut run, "ls /sys/block/vda/mq | wc -l"), "2\n", "a queue for each vCPU");
    assert_eq!(ssh(&mut run, VERIFY), "verified\n");
    assert_eq!(
        ssh(
            &mut run,
            "sudo dmidecode -s system-manufacturer 2>/dev/null || cat /sys/class/dmi/id/sys_vendor"
        ),
        "Amazon EC2\n"
    );
    assert_eq!(ssh(&mut run, "systemctl --failed --no-legend | wc -l"), "0\n");

    ssh(&mut run, "sudo systemd-run --on-active=1 poweroff");
    run.wait_power_off(300);
}
