//! The TC programs: they find the headers of a packet and carry out what the rules decide.
//!
//! A program answers `TC_ACT_UNSPEC` for packets that go on, so that other programs on the same hook run as
//! if this one were not there, and `TC_ACT_SHOT` for packets that stop here. The state word is loaded
//! once per packet.
//!
//! Logging (`aya-log`) is decided when the programs are loaded: the level is a constant to the verifier,
//! which removes the code of everything above it.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod maps;
mod members;
mod packet;
mod state;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use aya_log_ebpf::debug;
use unasnap_guest_ebpf::{Counter, Egress, Ingress, StateWord, egress, ingress};

use crate::{
    maps::count,
    packet::{Headers, Ip},
};

/// Colours what leaves for members.
#[classifier]
fn unasnap_egress(ctx: TcContext) -> i32 {
    match packet::parse(&ctx) {
        Headers::Ip(ip) => leave(&ctx, &ip),
        Headers::Exempt => exempt(),
        Headers::Other => TC_ACT_UNSPEC,
    }
}

/// Judges what comes from members, and takes the colour off before the guest's stack sees it.
#[classifier]
fn unasnap_ingress(ctx: TcContext) -> i32 {
    match packet::parse(&ctx) {
        Headers::Ip(ip) => arrive(&ctx, &ip),
        Headers::Exempt => exempt(),
        Headers::Other => TC_ACT_UNSPEC,
    }
}

#[inline(always)]
fn exempt() -> i32 {
    count(Counter::Exempt);
    TC_ACT_UNSPEC
}

#[inline(always)]
fn leave(ctx: &TcContext, ip: &Ip) -> i32 {
    let (dscp, row) = match egress(state::load(), ip.dscp(), maps::code_points()) {
        Egress::Leave => return TC_ACT_UNSPEC,
        Egress::Colour(code) => (code, Counter::Coloured),
        Egress::Sanitise => (0, Counter::Sanitised),
    };
    if !members::receiver(ip) {
        count(Counter::NonMember);
        return TC_ACT_UNSPEC;
    }
    rewrite(ctx, ip, dscp, row)
}

#[inline(always)]
fn arrive(ctx: &TcContext, ip: &Ip) -> i32 {
    let word = state::load();
    let verdict = ingress(word, ip.dscp(), maps::code_points());
    if verdict == Ingress::Accept {
        return TC_ACT_UNSPEC;
    }
    if !members::sender(ip) {
        count(Counter::NonMember);
        return TC_ACT_UNSPEC;
    }
    match verdict {
        Ingress::Accept => TC_ACT_UNSPEC,
        Ingress::AcceptColoured => rewrite(ctx, ip, 0, Counter::AcceptedColoured),
        Ingress::AcceptInTransit => rewrite(ctx, ip, 0, Counter::InTransit),
        Ingress::DropPost => stop(ctx, word, ip.dscp(), Counter::PostDropped),
        Ingress::DropUncoloured => stop(ctx, word, ip.dscp(), Counter::UncolouredDropped),
    }
}

#[inline(always)]
fn rewrite(ctx: &TcContext, ip: &Ip, dscp: u8, row: Counter) -> i32 {
    ip.set_dscp(ctx, dscp);
    count(row);
    TC_ACT_UNSPEC
}

#[inline(always)]
fn stop(ctx: &TcContext, word: StateWord, dscp: u8, row: Counter) -> i32 {
    count(row);
    debug!(ctx, "dropped: dscp {}, send {}, receive {}", dscp, word.send(), word.receive());
    state::dropped(ctx, word);
    TC_ACT_SHOT
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
