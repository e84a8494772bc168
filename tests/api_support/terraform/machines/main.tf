# Instances with all that can be said of one, their disks and interfaces, and what is looked up of them.
# `running` is changed between two applies.

variable "running" { default = "running" }
data "aws_ami" "guest" {
  most_recent = true
  owners      = ["self"]
  filter {
    name   = "name"
    values = ["guest-*"]
  }
  filter {
    name   = "architecture"
    values = ["x86_64"]
  }
  filter {
    name   = "root-device-type"
    values = ["ebs"]
  }
  filter {
    name   = "virtualization-type"
    values = ["hvm"]
  }
  filter {
    name   = "state"
    values = ["available"]
  }
}

data "aws_ami_ids" "all" {
  owners = ["self"]
}

data "aws_vpc" "default" { default = true }

data "aws_subnets" "default" {
  filter {
    name   = "vpc-id"
    values = [data.aws_vpc.default.id]
  }
}

resource "aws_key_pair" "me" {
  key_name_prefix = "me-"
  public_key      = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ3sQyVrj0m7V8uCwbzWjG2ZQp5r1YVYJ2Zf3oFqkq3T x"
}

resource "aws_network_interface" "first" {
  subnet_id         = data.aws_subnets.default.ids[0]
  private_ips_count = 1
}

resource "aws_instance" "router" {
  ami           = data.aws_ami.guest.id
  instance_type = "t3.nano"
  key_name      = aws_key_pair.me.key_name
  network_interface {
    device_index         = 0
    network_interface_id = aws_network_interface.first.id
  }
  user_data_base64                     = base64encode("hello")
  disable_api_termination              = true
  instance_initiated_shutdown_behavior = "stop"
  ebs_block_device {
    device_name = "/dev/sdf"
    volume_size = 1
    volume_type = "gp3"
    tags        = { Name = "data" }
  }
  metadata_options {
    http_endpoint               = "enabled"
    http_put_response_hop_limit = 2
    http_tokens                 = "required"
    instance_metadata_tags      = "enabled"
  }
  tags = { Name = "router" }
}

resource "aws_instance" "plain" {
  ami                         = data.aws_ami.guest.id
  instance_type               = "t3.nano"
  subnet_id                   = data.aws_subnets.default.ids[0]
  associate_public_ip_address = false
  secondary_private_ips       = [cidrhost(data.aws_subnet.one.cidr_block, 200)]
  source_dest_check           = false
  monitoring                  = true
  ebs_optimized               = true
  credit_specification { cpu_credits = "standard" }
  maintenance_options { auto_recovery = "default" }
  enclave_options { enabled = false }
  capacity_reservation_specification { capacity_reservation_preference = "open" }
  private_dns_name_options { hostname_type = "ip-name" }
  root_block_device {
    volume_size           = 2
    volume_type           = "gp3"
    delete_on_termination = true
    encrypted             = false
    tags                  = { Name = "root" }
  }
}

data "aws_subnet" "one" { id = data.aws_subnets.default.ids[0] }

resource "aws_ebs_volume" "extra" {
  availability_zone = aws_instance.plain.availability_zone
  size              = 1
  type              = "gp3"
  iops              = 3000
  throughput        = 125
}

resource "aws_volume_attachment" "extra" {
  device_name                    = "/dev/sdh"
  volume_id                      = aws_ebs_volume.extra.id
  instance_id                    = aws_instance.plain.id
  stop_instance_before_detaching = true
}

resource "aws_ebs_snapshot" "extra" {
  volume_id = aws_ebs_volume.extra.id
}

resource "aws_ec2_instance_state" "plain" {
  instance_id = aws_instance.plain.id
  state       = var.running
}

resource "aws_ec2_tag" "more" {
  resource_id = data.aws_subnets.default.ids[0]
  key         = "more"
  value       = "yes"
}

data "aws_instance" "router" { instance_id = aws_instance.router.id }

data "aws_instances" "all" {
  instance_tags = { Name = "router" }
  depends_on    = [aws_instance.router]
}

data "aws_ebs_volume" "extra" {
  filter {
    name   = "volume-id"
    values = [aws_ebs_volume.extra.id]
  }
}

data "aws_ebs_snapshot" "extra" {
  snapshot_ids = [aws_ebs_snapshot.extra.id]
}

data "aws_network_interface" "first" { id = aws_network_interface.first.id }

data "aws_key_pair" "me" { key_name = aws_key_pair.me.key_name }

output "plain" { value = aws_instance.plain.id }
output "router" { value = aws_instance.router.id }
output "seen" { value = data.aws_instances.all.ids[0] }
