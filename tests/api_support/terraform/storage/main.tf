variable "image" {}
variable "size" {}
variable "type" {}

resource "aws_ebs_volume" "data" {
  availability_zone = "us-east-1a"
  size              = var.size
  type              = var.type
  tags              = { Name = "data" }
}

resource "aws_ebs_snapshot" "data" {
  volume_id   = aws_ebs_volume.data.id
  description = "of data"
}

resource "aws_ebs_snapshot_copy" "copy" {
  source_snapshot_id = aws_ebs_snapshot.data.id
  source_region      = "us-east-1"
}

resource "aws_instance" "one" {
  ami           = var.image
  instance_type = "t3.nano"
  root_block_device {
    volume_size = 2
    volume_type = "gp2"
  }
  ebs_block_device {
    device_name           = "/dev/sdf"
    volume_size           = 1
    delete_on_termination = true
  }
  ebs_block_device {
    device_name = "/dev/sdg"
    snapshot_id = aws_ebs_snapshot_copy.copy.id
    volume_type = "gp3"
    iops        = 4000
  }
}

resource "aws_ami_from_instance" "golden" {
  name               = "golden"
  source_instance_id = aws_instance.one.id
}

resource "aws_ami_copy" "copy" {
  name              = "golden-copy"
  source_ami_id     = aws_ami_from_instance.golden.id
  source_ami_region = "us-east-1"
}

resource "aws_ami" "own" {
  name                = "own"
  virtualization_type = "hvm"
  root_device_name    = "/dev/xvda"
  ena_support         = true
  ebs_block_device {
    device_name = "/dev/xvda"
    snapshot_id = aws_ebs_snapshot_copy.copy.id
    volume_size = 3
  }
}
