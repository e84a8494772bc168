# Users, groups, roles and policies, and every way to tie them together.
# `what` is changed between two applies.

variable "what" { default = "ec2:Describe*" }
data "aws_caller_identity" "me" {}

data "aws_iam_policy" "read" { name = "AmazonEC2ReadOnlyAccess" }
data "aws_iam_policy_document" "trust" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "AWS"
      identifiers = [data.aws_caller_identity.me.account_id]
    }
    condition {
      test     = "StringEquals"
      variable = "sts:ExternalId"
      values   = ["x"]
    }
  }
}

data "aws_iam_policy_document" "look" {
  statement {
    sid       = "Look"
    actions   = [var.what]
    resources = ["*"]
  }
}

resource "aws_iam_role" "app" {
  name                 = "app"
  description          = "of the application"
  assume_role_policy   = data.aws_iam_policy_document.trust.json
  max_session_duration = 7200
}

resource "aws_iam_policy" "look" {
  name        = "look"
  description = "looks around"
  policy      = data.aws_iam_policy_document.look.json
}

resource "aws_iam_role_policy_attachment" "look" {
  role       = aws_iam_role.app.name
  policy_arn = aws_iam_policy.look.arn
}

resource "aws_iam_role_policy_attachment" "read" {
  role       = aws_iam_role.app.name
  policy_arn = data.aws_iam_policy.read.arn
}

resource "aws_iam_role_policy" "own" {
  name_prefix = "own-"
  role        = aws_iam_role.app.id
  policy      = data.aws_iam_policy_document.look.json
}

resource "aws_iam_instance_profile" "app" {
  name_prefix = "app-"
  role        = aws_iam_role.app.name
}

resource "aws_iam_user" "ann" { name = "ann" }

resource "aws_iam_user" "bob" {
  name          = "bob"
  force_destroy = true
}

resource "aws_iam_user_policy" "ann" {
  name   = "own"
  user   = aws_iam_user.ann.name
  policy = data.aws_iam_policy_document.look.json
}

resource "aws_iam_user_policy_attachment" "ann" {
  user       = aws_iam_user.ann.name
  policy_arn = aws_iam_policy.look.arn
}

resource "aws_iam_access_key" "ann" { user = aws_iam_user.ann.name }

resource "aws_iam_group" "ops" { name = "ops" }
resource "aws_iam_group_membership" "ops" {
  name  = "ops"
  group = aws_iam_group.ops.name
  users = [aws_iam_user.ann.name]
}

resource "aws_iam_user_group_membership" "bob" {
  user   = aws_iam_user.bob.name
  groups = [aws_iam_group.ops2.name]
}

resource "aws_iam_group" "ops2" { name = "ops2" }

resource "aws_iam_group_policy" "ops" {
  name   = "own"
  group  = aws_iam_group.ops.name
  policy = data.aws_iam_policy_document.look.json
}

resource "aws_iam_group_policy_attachment" "ops" {
  group      = aws_iam_group.ops.name
  policy_arn = aws_iam_policy.look.arn
}

resource "aws_iam_policy_attachment" "read" {
  name       = "read"
  users      = [aws_iam_user.bob.name]
  groups     = [aws_iam_group.ops.name]
  policy_arn = aws_iam_policy.second.arn
}

resource "aws_iam_policy" "second" {
  name_prefix = "second-"
  policy      = data.aws_iam_policy_document.look.json
}

data "aws_iam_role" "app" { name = aws_iam_role.app.name }

data "aws_iam_user" "ann" { user_name = aws_iam_user.ann.name }
data "aws_iam_group" "ops" {
  group_name = aws_iam_group.ops.name
  depends_on = [aws_iam_group_membership.ops]
}

data "aws_iam_instance_profile" "app" { name = aws_iam_instance_profile.app.name }

data "aws_iam_access_keys" "ann" {
  user       = aws_iam_user.ann.name
  depends_on = [aws_iam_access_key.ann]
}

data "aws_iam_roles" "all" { depends_on = [aws_iam_role.app] }

data "aws_iam_users" "all" { depends_on = [aws_iam_user.ann] }
output "account" { value = data.aws_caller_identity.me.account_id }

output "secret" {
  value     = aws_iam_access_key.ann.secret
  sensitive = true
}
