//! `kiln-vmm`: one virtual machine.

fn main() {}
