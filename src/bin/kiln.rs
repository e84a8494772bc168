//! `kiln`: run AMI-style images as instances.

fn main() {}
