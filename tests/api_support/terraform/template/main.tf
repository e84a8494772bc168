# A machine that is launched from a template. `type` is changed between two applies. User data of a template are not
# tried: the provider takes the hash of their hash for a change of them, with any service.

variable "image" {}
variable "type" { default = "t3.nano" }

resource "aws_security_group" "web" {
  name = "templated"
}

resource "aws_launch_template" "web" {
  name                                 = "web"
  description                          = "for ${var.type}"
  image_id                             = var.image
  instance_type                        = var.type
  instance_initiated_shutdown_behavior = "terminate"
  update_default_version               = true
  vpc_security_group_ids               = [aws_security_group.web.id]
  block_device_mappings {
    device_name = "/dev/sdf"
    ebs {
      volume_size           = 1
      volume_type           = "gp3"
      delete_on_termination = true
    }
  }
  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 2
  }
  tag_specifications {
    resource_type = "instance"
    tags          = { colour = "blue" }
  }
  tags = { kind = "test" }
}

resource "aws_instance" "web" {
  launch_template {
    id      = aws_launch_template.web.id
    version = aws_launch_template.web.latest_version
  }
  tags = { colour = "blue", Name = "web" }
}

output "instance" { value = aws_instance.web.id }
output "template" { value = aws_launch_template.web.id }
output "version" { value = aws_launch_template.web.default_version }
