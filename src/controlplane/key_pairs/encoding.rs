//! The text and binary forms of keys: DER (X.690) as far as RSA keys need it, PEM (RFC 7468), SSH wire
//! format (RFC 4253 section 6.6, RFC 8709) and OpenSSH's own form of private keys (PROTOCOL.key).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;
/// `SEQUENCE { rsaEncryption, NULL }` (RFC 8017 appendix A.1).
const RSA_ALGORITHM: [u8; 15] =
    [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

/// Takes one DER element with this tag off the front: its contents, and what follows.
fn take(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&[found, short], rest) = bytes.split_first_chunk::<2>()?;
    if found != tag {
        return None;
    }
    if short < 0x80 {
        return rest.split_at_checked(usize::from(short));
    }
    let (digits, rest) = rest.split_at_checked(usize::from(short & 0x7f))?;
    if digits.len() > size_of::<u32>() {
        return None;
    }
    let length = digits.iter().fold(0, |length: usize, digit| length << 8 | usize::from(*digit));
    rest.split_at_checked(length)
}

fn element(tag: u8, contents: &[&[u8]]) -> Vec<u8> {
    let length: usize = contents.iter().map(|part| part.len()).sum();
    let digits: Vec<u8> = length.to_be_bytes().into_iter().skip_while(|digit| *digit == 0).collect();
    let mut out = vec![tag];
    match u8::try_from(length) {
        Ok(short @ 0..0x80) => out.push(short),
        // At most eight digits.
        _ => out.extend([&[0x80 | u8::try_from(digits.len()).unwrap_or(8)], digits.as_slice()].concat()),
    }
    out.extend(contents.concat());
    out
}

/// The PKCS #1 structure inside of PKCS #8 (RFC 5208).
pub(super) fn pkcs1_of_pkcs8(pkcs8: &[u8]) -> Option<&[u8]> {
    let (inside, _) = take(SEQUENCE, pkcs8)?;
    let (_version, rest) = take(INTEGER, inside)?;
    let (_algorithm, rest) = take(SEQUENCE, rest)?;
    Some(take(OCTET_STRING, rest)?.0)
}

/// PEM in lines of `width`.
pub(super) fn pem(label: &str, bytes: &[u8], width: usize) -> Zeroizing<String> {
    let body = Zeroizing::new(STANDARD.encode(bytes));
    let mut text = Zeroizing::new(format!("-----BEGIN {label}-----\n"));
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at_checked(width).unwrap_or((rest, ""));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str(&format!("-----END {label}-----"));
    text
}

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend(bytes);
}

fn take_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

/// An RSA public key: contents of its two integers, which both formats write alike.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RsaPublic<'a> {
    pub modulus: &'a [u8],
    pub exponent: &'a [u8],
}

impl<'a> RsaPublic<'a> {
    /// Of `RSAPublicKey` (PKCS #1).
    pub(super) fn from_pkcs1(der: &'a [u8]) -> Option<Self> {
        let (inside, _) = take(SEQUENCE, der)?;
        let (modulus, rest) = take(INTEGER, inside)?;
        Some(RsaPublic { modulus, exponent: take(INTEGER, rest)?.0 })
    }

    /// Of the SSH wire format.
    pub(super) fn from_ssh(blob: &'a [u8]) -> Option<Self> {
        let (name, rest) = take_string(blob)?;
        let (exponent, rest) = take_string(rest)?;
        let (modulus, rest) = take_string(rest)?;
        (name == b"ssh-rsa" && rest.is_empty()).then_some(RsaPublic { modulus, exponent })
    }

    /// The SSH wire format.
    pub(super) fn to_ssh(&self) -> Vec<u8> {
        let mut blob = Vec::new();
        string(&mut blob, b"ssh-rsa");
        string(&mut blob, self.exponent);
        string(&mut blob, self.modulus);
        blob
    }

    /// `SubjectPublicKeyInfo` (RFC 3279 section 2.3.1).
    pub(super) fn to_spki(&self) -> Vec<u8> {
        let key =
            element(SEQUENCE, &[&element(INTEGER, &[self.modulus]), &element(INTEGER, &[self.exponent])]);
        element(SEQUENCE, &[&RSA_ALGORITHM, &element(BIT_STRING, &[&[0], &key])])
    }

    /// Bits of the modulus, to the byte.
    pub(super) fn bits(&self) -> usize {
        self.modulus.iter().skip_while(|byte| **byte == 0).count() * 8
    }
}

/// An Ed25519 public key in the SSH wire format.
pub(super) fn ed25519_to_ssh(public: &[u8]) -> Vec<u8> {
    let mut blob = Vec::new();
    string(&mut blob, b"ssh-ed25519");
    string(&mut blob, public);
    blob
}

/// An unencrypted Ed25519 key as `ssh-keygen` writes it. `check`: any number.
pub(super) fn ed25519_private(seed: &[u8], public: &[u8], check: u32, comment: &str) -> Zeroizing<String> {
    const BLOCK: usize = 8;
    let mut private = Zeroizing::new(Vec::new());
    private.extend([check.to_be_bytes(), check.to_be_bytes()].concat());
    string(&mut private, b"ssh-ed25519");
    string(&mut private, public);
    string(&mut private, &Zeroizing::new([seed, public].concat()));
    string(&mut private, comment.as_bytes());
    let padding = private.len().next_multiple_of(BLOCK).saturating_sub(private.len());
    private.extend((1..=8u8).take(padding));
    let mut whole = Zeroizing::new(b"openssh-key-v1\0".to_vec());
    string(&mut whole, b"none");
    string(&mut whole, b"none");
    string(&mut whole, b"");
    whole.extend(1u32.to_be_bytes());
    string(&mut whole, &ed25519_to_ssh(public));
    string(&mut whole, &private);
    let mut text = pem("OPENSSH PRIVATE KEY", &whole, 70);
    // ssh takes no such key whose last line has no end, and clients write down what they get.
    text.push('\n');
    text
}
