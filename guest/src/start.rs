//! What the loader told: `hvm_start_info` of the PVH protocol.

use core::slice;

unsafe extern "C" {
    /// Set by `boot.s`.
    static start_info: u64;
}

const MAGIC: u32 = 0x336e_c578;
const MAX_CMDLINE: usize = 4096;

#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    cmdline: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

/// An entry of the memory map.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MemoryRange {
    pub address: u64,
    pub size: u64,
    pub kind: u32,
    reserved: u32,
}

/// An initial RAM disk.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Module {
    pub address: u64,
    pub size: u64,
    cmdline: u64,
    reserved: u64,
}

fn info() -> &'static StartInfo {
    unsafe { &*(start_info as *const StartInfo) }
}

/// Whether the structure is one.
pub fn is_valid() -> bool {
    info().magic == MAGIC && info().version >= 1
}

pub fn cmdline() -> &'static str {
    if !is_valid() || info().cmdline == 0 {
        return "";
    }
    let bytes = unsafe { slice::from_raw_parts(info().cmdline as *const u8, MAX_CMDLINE) };
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(0);
    core::str::from_utf8(&bytes[..end]).unwrap_or("")
}

/// Value of `name=` on the command line.
pub fn option(name: &str) -> Option<&'static str> {
    cmdline().split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

pub fn rsdp() -> u64 {
    info().rsdp
}

pub fn memory_map() -> &'static [MemoryRange] {
    let info = info();
    unsafe { slice::from_raw_parts(info.memory_map as *const MemoryRange, info.memory_map_entries as usize) }
}

pub fn modules() -> &'static [Module] {
    let info = info();
    if info.modules == 0 {
        return &[];
    }
    unsafe { slice::from_raw_parts(info.module_list as *const Module, info.modules as usize) }
}
