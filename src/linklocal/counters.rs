//! What the services of one interface did, as counts.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts since the interface was made.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// All counts by name.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Frames from the guest.
    frames_in,
    /// Frames for the guest.
    frames_out,
    /// Frames whose parts do not fit together.
    malformed,
    /// Frames with a checksum that does not hold.
    bad_checksum,
    /// Fragments, IP options, extension headers, tags, unknown protocols.
    unsupported,
    /// Frames from an address that is not the interface's own.
    foreign_source,
    /// Packets to addresses and ports that nobody serves.
    unserved,
    /// Packets over the allowance (EC2 calls it `linklocal_allowance_exceeded`).
    allowance_exceeded,
    /// Answers dropped because the guest does not take its frames.
    output_full,
    /// ARP and neighbour answers.
    neighbor_replies,
    /// ICMP echo answers.
    echo_replies,
    /// DHCP offers, acknowledgements and refusals.
    dhcp_replies,
    /// DHCPv6 advertisements and replies.
    dhcpv6_replies,
    /// Router advertisements, asked for or not.
    router_advertisements,
    /// NTP answers.
    ntp_replies,
    /// TCP connections accepted.
    connections,
    /// Connections given up to make room for new ones.
    connections_evicted,
    /// Connections given up because nothing happened.
    connections_timed_out,
    /// Connection attempts without room.
    connections_refused,
    /// Metadata requests answered.
    imds_requests,
    /// Session tokens handed out.
    imds_tokens,
    /// Metadata requests answered with 401.
    imds_unauthorized,
    /// Metadata requests answered with 403.
    imds_forbidden,
    /// Metadata requests without a token (version 1), as the `MetadataNoToken` metric of EC2.
    imds_no_token,
    /// DNS queries taken.
    dns_queries,
    /// DNS queries handed out for the host to resolve.
    dns_forwarded,
    /// DNS queries that nobody answered in time, or that found no room.
    dns_failed,
}
