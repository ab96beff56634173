//! The rows of the counter table: one `u64` per CPU and row, never reset.
//!
//! A packet counts in exactly one row, or in none: packets that are let through because there is nothing
//! to do (idle on egress, uncoloured and not strict on ingress) are not worth a counter. A drop that ends
//! in a self-advance counts in both rows.

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)+) => {
        /// One row.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Counter {
            $($(#[$doc])* $variant,)+
        }

        impl Counter {
            /// Every row, in the order of the map.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name under which the row is reported.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

counters! {
    /// Egress: a packet to a member left with the send colour.
    Coloured = "coloured",
    /// Egress, idle: the application had used one of our code points, rewritten to 0.
    Sanitised = "sanitised",
    /// Ingress: same colour as the receive epoch; accepted, DSCP reset to 0.
    AcceptedColoured = "accepted_coloured",
    /// Ingress: colour of the epoch before, the packet crosses the cut; accepted, DSCP reset to 0.
    InTransit = "in_transit",
    /// Ingress: colour of the next epoch; dropped.
    PostDropped = "post_dropped",
    /// Ingress, strict: no colour; dropped.
    UncolouredDropped = "uncoloured_dropped",
    /// ARP or IPv6 neighbour discovery, either way; left alone.
    Exempt = "exempt",
    /// A packet that would have been touched or dropped, were its other end a member; left alone.
    NonMember = "non_member",
    /// The member advanced by itself, having dropped for longer than the lease.
    SelfAdvanced = "self_advanced",
}

impl Counter {
    /// Place of the row in the map.
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> u32 {
        self as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_in_their_own_order() {
        for (place, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(counter.index() as usize, place, "{}", counter.name());
        }
    }
}
