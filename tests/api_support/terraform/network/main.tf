# A VPC with all that Kiln has of networks, as the common modules lay it out: public and private subnets with their
# tables, a NAT gateway, lists and groups of every kind, and an interface with two addresses.
# `port` is changed between two applies.

variable "port" { default = 443 }

data "aws_region" "here" {}

data "aws_partition" "here" {}
data "aws_availability_zones" "all" { state = "available" }

data "aws_vpc" "default" { default = true }
data "aws_subnets" "default" {
  filter {
    name   = "vpc-id"
    values = [data.aws_vpc.default.id]
  }
}

data "aws_subnet" "default" { id = data.aws_subnets.default.ids[0] }

data "aws_security_group" "default" {
  vpc_id = data.aws_vpc.default.id
  name   = "default"
}

data "aws_internet_gateway" "default" {
  filter {
    name   = "attachment.vpc-id"
    values = [data.aws_vpc.default.id]
  }
}

data "aws_route_table" "default" {
  vpc_id = data.aws_vpc.default.id
  filter {
    name   = "association.main"
    values = ["true"]
  }
}

data "aws_ec2_instance_type" "micro" { instance_type = "t3.micro" }

data "aws_ec2_instance_type_offerings" "here" {
  filter {
    name   = "instance-type"
    values = ["t3.micro", "t3.small"]
  }
}

resource "aws_vpc" "net" {
  cidr_block           = "10.88.0.0/16"
  enable_dns_support   = true
  enable_dns_hostnames = true
  tags                 = { Name = "net" }
}

resource "aws_default_security_group" "net" { vpc_id = aws_vpc.net.id }

resource "aws_default_network_acl" "net" {
  default_network_acl_id = aws_vpc.net.default_network_acl_id
  ingress {
    rule_no    = 100
    action     = "allow"
    protocol   = "-1"
    from_port  = 0
    to_port    = 0
    cidr_block = "0.0.0.0/0"
  }
  egress {
    rule_no    = 100
    action     = "allow"
    protocol   = "-1"
    from_port  = 0
    to_port    = 0
    cidr_block = "0.0.0.0/0"
  }
  lifecycle { ignore_changes = [subnet_ids] }
}

resource "aws_default_route_table" "net" {
  default_route_table_id = aws_vpc.net.default_route_table_id
  route                  = []
  tags                   = { Name = "net-default" }
}

resource "aws_internet_gateway" "net" {
  vpc_id = aws_vpc.net.id
  tags   = { Name = "net" }
}

resource "aws_subnet" "public" {
  vpc_id                              = aws_vpc.net.id
  cidr_block                          = "10.88.0.0/24"
  availability_zone                   = data.aws_availability_zones.all.names[0]
  private_dns_hostname_type_on_launch = "ip-name"
  map_public_ip_on_launch             = true
}

resource "aws_subnet" "private" {
  vpc_id            = aws_vpc.net.id
  cidr_block        = "10.88.1.0/24"
  availability_zone = data.aws_availability_zones.all.names[0]
}

resource "aws_eip" "nat" {
  domain     = "vpc"
  tags       = { Name = "nat" }
  depends_on = [aws_internet_gateway.net]
}

resource "aws_nat_gateway" "net" {
  allocation_id = aws_eip.nat.id
  subnet_id     = aws_subnet.public.id
  tags          = { Name = "net" }
  depends_on    = [aws_internet_gateway.net]
}

resource "aws_route_table" "public" {
  vpc_id = aws_vpc.net.id
  tags   = { Name = "public" }
}

resource "aws_route" "public" {
  route_table_id         = aws_route_table.public.id
  destination_cidr_block = "0.0.0.0/0"
  gateway_id             = aws_internet_gateway.net.id
  timeouts { create = "5m" }
}

resource "aws_route_table_association" "public" {
  subnet_id      = aws_subnet.public.id
  route_table_id = aws_route_table.public.id
}

resource "aws_route_table" "private" { vpc_id = aws_vpc.net.id }

resource "aws_route" "private" {
  route_table_id         = aws_route_table.private.id
  destination_cidr_block = "0.0.0.0/0"
  nat_gateway_id         = aws_nat_gateway.net.id
}

resource "aws_route_table_association" "private" {
  subnet_id      = aws_subnet.private.id
  route_table_id = aws_route_table.private.id
}

resource "aws_network_acl" "private" {
  vpc_id     = aws_vpc.net.id
  subnet_ids = [aws_subnet.private.id]
}

resource "aws_network_acl_rule" "in" {
  network_acl_id = aws_network_acl.private.id
  egress         = false
  rule_number    = 100
  rule_action    = "allow"
  protocol       = "tcp"
  cidr_block     = "10.88.0.0/16"
  from_port      = 0
  to_port        = 65535
}

resource "aws_network_acl_rule" "ping" {
  network_acl_id = aws_network_acl.private.id
  egress         = true
  rule_number    = 200
  rule_action    = "allow"
  protocol       = "icmp"
  icmp_type      = -1
  icmp_code      = -1
  cidr_block     = "0.0.0.0/0"
}

resource "aws_ec2_managed_prefix_list" "office" {
  name           = "office"
  address_family = "IPv4"
  max_entries    = 5
  entry {
    cidr        = "192.0.2.0/24"
    description = "first floor"
  }
}

resource "aws_ec2_managed_prefix_list_entry" "home" {
  prefix_list_id = aws_ec2_managed_prefix_list.home.id
  cidr           = "198.51.100.0/24"
}

resource "aws_ec2_managed_prefix_list" "home" {
  name           = "home"
  address_family = "IPv4"
  max_entries    = 5
}

resource "aws_security_group" "web" {
  name_prefix = "web-"
  description = "web"
  vpc_id      = aws_vpc.net.id
  lifecycle { create_before_destroy = true }
}

resource "aws_vpc_security_group_ingress_rule" "web" {
  security_group_id = aws_security_group.web.id
  description       = "from the office"
  prefix_list_id    = aws_ec2_managed_prefix_list.office.id
  ip_protocol       = "tcp"
  from_port         = var.port
  to_port           = var.port
}

resource "aws_vpc_security_group_ingress_rule" "self" {
  security_group_id            = aws_security_group.web.id
  referenced_security_group_id = aws_security_group.web.id
  ip_protocol                  = "-1"
}

resource "aws_vpc_security_group_egress_rule" "all" {
  security_group_id = aws_security_group.web.id
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
}

resource "aws_security_group" "db" {
  name   = "db"
  vpc_id = aws_vpc.net.id
}

resource "aws_security_group_rule" "db" {
  type                     = "ingress"
  security_group_id        = aws_security_group.db.id
  source_security_group_id = aws_security_group.web.id
  protocol                 = "tcp"
  from_port                = 5432
  to_port                  = 5432
}

resource "aws_network_interface" "router" {
  subnet_id         = aws_subnet.private.id
  private_ips       = ["10.88.1.10", "10.88.1.11"]
  security_groups   = [aws_security_group.db.id]
  source_dest_check = false
  description       = "router"
}

resource "aws_eip" "router" { domain = "vpc" }

resource "aws_eip_association" "router" {
  allocation_id        = aws_eip.router.id
  network_interface_id = aws_network_interface.router.id
  private_ip_address   = "10.88.1.11"
}

output "vpc" { value = aws_vpc.net.id }
output "group" { value = aws_security_group.web.id }
output "interface" { value = aws_network_interface.router.id }
output "address" { value = aws_eip.router.public_ip }
