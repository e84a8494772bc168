//! A signed document as PKCS #7 SignedData (RFC 5652 §5): content attached, one signer named by issuer
//! and serial number, no certificate inside, no signed attributes. The signature is thus over the bare
//! content, which is what `openssl smime -verify` checks.

use cms::cert::IssuerAndSerialNumber;
use cms::content_info::{CmsVersion, ContentInfo};
use cms::signed_data::{EncapsulatedContentInfo, SignedData, SignerIdentifier, SignerInfo, SignerInfos};
use der::asn1::{Any, Null, ObjectIdentifier, OctetString, SetOfVec};
use der::{Decode, Encode};
use x509_cert::Certificate;
use x509_cert::spki::AlgorithmIdentifierOwned;

const DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.1");
const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
const SHA_256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// Wraps `content` and its RSA signature (PKCS #1 v1.5 with SHA-256) by the key of `certificate` (DER).
pub(super) fn signed_data(content: &[u8], signature: &[u8], certificate: &[u8]) -> der::Result<Vec<u8>> {
    let certificate = Certificate::from_der(certificate)?.tbs_certificate;
    let algorithm = |oid| AlgorithmIdentifierOwned { oid, parameters: Some(Any::from(Null)) };
    let signer = SignerInfo {
        version: CmsVersion::V1,
        sid: SignerIdentifier::IssuerAndSerialNumber(IssuerAndSerialNumber {
            issuer: certificate.issuer,
            serial_number: certificate.serial_number,
        }),
        digest_alg: algorithm(SHA_256),
        signed_attrs: None,
        signature_algorithm: algorithm(RSA_ENCRYPTION),
        signature: OctetString::new(signature)?,
        unsigned_attrs: None,
    };
    let content = OctetString::new(content)?;
    let signed = SignedData {
        version: CmsVersion::V1,
        digest_algorithms: SetOfVec::try_from(vec![algorithm(SHA_256)])?,
        encap_content_info: EncapsulatedContentInfo {
            econtent_type: DATA,
            econtent: Some(Any::encode_from(&content)?),
        },
        certificates: None,
        crls: None,
        signer_infos: SignerInfos(SetOfVec::try_from(vec![signer])?),
    };
    ContentInfo { content_type: SIGNED_DATA, content: Any::encode_from(&signed)? }.to_der()
}
