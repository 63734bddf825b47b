//! CIDR block: a range of addresses, as operators write it.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// Addresses that share their first bits: `10.0.0.0/8`, `fd00::/8`, or a single one.
///
/// Bits after the prefix are cleared: `10.1.2.3/8` is `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    first: IpAddr,
    prefix: u8,
}

/// Why a text is not a CIDR block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The part before the slash is no address.
    #[error("`{0}` is not an IP address\nhint: write an address or a block, like `10.0.0.0/8`")]
    Address(String),
    /// The part after the slash is no prefix length.
    #[error("`{text}` is not a prefix length\nhint: write a number from 0 to {most}")]
    Prefix {
        /// What stood there.
        text: String,
        /// The longest prefix the address family has.
        most: u8,
    },
}

impl Cidr {
    /// The block of the first `prefix` bits of `address`; a longer prefix than the
    /// family has counts as the whole address.
    pub fn new(address: IpAddr, prefix: u8) -> Self {
        match address {
            IpAddr::V4(it) => {
                let prefix = prefix.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                Self { first: Ipv4Addr::from_bits(it.to_bits() & mask).into(), prefix }
            }
            IpAddr::V6(it) => {
                let prefix = prefix.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                Self { first: Ipv6Addr::from_bits(it.to_bits() & mask).into(), prefix }
            }
        }
    }

    /// The lowest address of the block.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The highest address of the block.
    pub fn last(&self) -> IpAddr {
        match self.first {
            IpAddr::V4(it) => {
                let host = u32::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
                Ipv4Addr::from_bits(it.to_bits() | host).into()
            }
            IpAddr::V6(it) => {
                let host = u128::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
                Ipv6Addr::from_bits(it.to_bits() | host).into()
            }
        }
    }
}

impl From<IpAddr> for Cidr {
    fn from(address: IpAddr) -> Self {
        Self::new(address, u8::MAX)
    }
}

impl FromStr for Cidr {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (address, prefix) =
            text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr =
            address.parse().map_err(|_| ParseError::Address(address.to_owned()))?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let Some(text) = prefix else { return Ok(address.into()) };
        let prefix = text.parse().ok().filter(|it| *it <= most);
        let prefix = prefix.ok_or_else(|| ParseError::Prefix { text: text.to_owned(), most })?;
        Ok(Self::new(address, prefix))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_reaches_from_its_first_to_its_last_address() {
        let cases = [
            ("10.1.2.3/8", "10.0.0.0", "10.255.255.255"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.3"),
            ("0.0.0.0/0", "0.0.0.0", "255.255.255.255"),
            ("fd00::1/64", "fd00::", "fd00::ffff:ffff:ffff:ffff"),
            ("::1", "::1", "::1"),
            ("::/0", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ];
        for (text, first, last) in cases {
            let block: Cidr = text.parse().unwrap();
            assert_eq!(
                (block.first().to_string(), block.last().to_string()),
                (first.into(), last.into())
            );
        }
    }

    #[test]
    fn a_fault_names_the_part_it_is_in() {
        let parse = |text: &str| text.parse::<Cidr>().unwrap_err();
        assert_eq!(parse("10.0.0/8"), ParseError::Address("10.0.0".into()));
        assert_eq!(parse("10.0.0.0/33"), ParseError::Prefix { text: "33".into(), most: 32 });
        assert_eq!(parse("::/x"), ParseError::Prefix { text: "x".into(), most: 128 });
    }
}
