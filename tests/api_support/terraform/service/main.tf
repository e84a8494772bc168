# What a small service is made of: its network, its way out, who may talk to it, its machine, its disk.
# `type` and `open` are changed between two applies.

variable "image" {}
variable "public_key" {}
variable "type" { default = "t3.nano" }
variable "open" {
  type    = list(number)
  default = [22]
}
variable "size" {
  type    = number
  default = 1
}

data "aws_caller_identity" "me" {}
data "aws_availability_zones" "all" { state = "available" }

resource "aws_vpc" "net" {
  cidr_block           = "10.77.0.0/16"
  enable_dns_hostnames = true
  tags                 = { Name = "net" }
}

resource "aws_internet_gateway" "way_out" {
  vpc_id = aws_vpc.net.id
}

resource "aws_subnet" "front" {
  vpc_id                  = aws_vpc.net.id
  cidr_block              = "10.77.1.0/24"
  availability_zone       = data.aws_availability_zones.all.names[0]
  map_public_ip_on_launch = true
}

resource "aws_route_table" "front" {
  vpc_id = aws_vpc.net.id
  route {
    cidr_block = "0.0.0.0/0"
    gateway_id = aws_internet_gateway.way_out.id
  }
}

resource "aws_route_table_association" "front" {
  subnet_id      = aws_subnet.front.id
  route_table_id = aws_route_table.front.id
}

resource "aws_security_group" "web" {
  name   = "web"
  vpc_id = aws_vpc.net.id
  dynamic "ingress" {
    for_each = var.open
    content {
      protocol    = "tcp"
      from_port   = ingress.value
      to_port     = ingress.value
      cidr_blocks = ["0.0.0.0/0"]
    }
  }
  egress {
    protocol    = "-1"
    from_port   = 0
    to_port     = 0
    cidr_blocks = ["0.0.0.0/0"]
  }
}

resource "aws_key_pair" "me" {
  key_name   = "me"
  public_key = var.public_key
}

resource "aws_iam_role" "app" {
  name = "app"
  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Principal = { Service = "ec2.amazonaws.com" }, Action = "sts:AssumeRole" }]
  })
}

resource "aws_iam_role_policy" "look" {
  name = "look"
  role = aws_iam_role.app.id
  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "ec2:Describe*", Resource = "*" }]
  })
}

resource "aws_iam_instance_profile" "app" {
  name = "app"
  role = aws_iam_role.app.name
}

resource "aws_instance" "web" {
  ami                    = var.image
  instance_type          = var.type
  key_name               = aws_key_pair.me.key_name
  subnet_id              = aws_subnet.front.id
  vpc_security_group_ids = [aws_security_group.web.id]
  iam_instance_profile   = aws_iam_instance_profile.app.name
  user_data              = "#!/bin/sh\ntrue\n"
  metadata_options {
    http_tokens = "required"
  }
  root_block_device {
    volume_size = 1
  }
  tags = { Name = "web" }
}

resource "aws_eip" "web" {
  instance   = aws_instance.web.id
  domain     = "vpc"
  depends_on = [aws_internet_gateway.way_out]
}

resource "aws_ebs_volume" "data" {
  availability_zone = aws_subnet.front.availability_zone
  size              = var.size
}

output "account" { value = data.aws_caller_identity.me.account_id }
output "instance" { value = aws_instance.web.id }
output "address" { value = aws_eip.web.public_ip }
output "volume" { value = aws_ebs_volume.data.id }
output "group" { value = aws_security_group.web.id }
