//! What requests and answers look like: static tables made by `scripts/shapes` from the published
//! service model.
//!
//! ```text
//!   service-2.json ──scripts/shapes──▶ ec2.rs iam.rs sts.rs ebs.rs (static Shape)
//!                                          │
//!   query string ──decode(shape)──▶ checked Value ──serde──▶ what an action takes
//!   what an action answers: Value ──write(shape)──▶ XML
//! ```
//!
//! Tables instead of a struct for each of some 600 shapes: an action names the few members that it
//! serves in a struct of its own, and whatever it does not name is refused, not ignored. A value that
//! does not fit the table is written by nobody.

#[rustfmt::skip]
mod ebs;
#[rustfmt::skip]
mod ec2;
#[rustfmt::skip]
mod iam;
#[rustfmt::skip]
mod sts;

/// Limits of a value: of its number, or of the characters or elements of it.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The least.
    pub min: Option<i64>,
    /// The most.
    pub max: Option<i64>,
}

/// A list.
#[derive(Debug)]
pub struct List {
    /// Name of an element: in answers, and in requests where the list is not flat.
    pub element: &'static str,
    /// Whether a request has `List.1` rather than `List.member.1`.
    pub flat: bool,
    /// How many elements.
    pub bounds: Bounds,
    /// What they are.
    pub shape: &'static Shape,
}

/// What a value may be.
#[derive(Debug)]
pub enum Shape {
    /// Named members.
    Structure(&'static [Member]),
    /// Elements.
    List(List),
    /// Text.
    Text(Bounds),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A whole number.
    Integer(Bounds),
    /// Any number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// A moment: in answers from Unix seconds, in requests ISO 8601.
    Timestamp,
    /// Bytes, as base64.
    Blob,
}

/// A member of a structure.
#[derive(Debug)]
pub struct Member {
    /// Name in the model, which [`serde_json::Value`]s have.
    pub name: &'static str,
    /// Name in requests.
    pub wire: &'static str,
    /// Name in answers.
    pub location: &'static str,
    /// Whether a request without it makes no sense.
    pub required: bool,
    /// What it is.
    pub shape: &'static Shape,
}

/// An operation of a service.
#[derive(Debug)]
pub struct Operation {
    /// `Action`.
    pub name: &'static str,
    /// Its parameters.
    pub input: &'static Shape,
    /// Its answer.
    pub output: &'static Shape,
    /// Element around the answer, in IAM and STS.
    pub wrapper: Option<&'static str>,
}

/// A service.
#[derive(Debug)]
pub struct Service {
    /// As in the scope of a signature.
    pub name: &'static str,
    /// `Version`.
    pub version: &'static str,
    /// Of the answers.
    pub namespace: &'static str,
    /// By name.
    pub operations: &'static [Operation],
}

/// Where an operation of a REST service is.
#[derive(Debug)]
pub struct Route {
    /// Its name.
    pub operation: &'static str,
    /// Such as `GET`.
    pub method: &'static str,
    /// With names in braces for what a request fills in.
    pub path: &'static str,
    /// Of an answer.
    pub status: u16,
}

/// No members.
static EMPTY: Shape = Shape::Structure(&[]);

/// The service that is meant where nothing says which.
pub static EC2: &Service = &ec2::SERVICE;

/// The one that is asked by paths rather than by the Query protocol.
pub static EBS: &Service = &ebs::SERVICE;

/// Where its operations are.
pub static EBS_ROUTES: &[Route] = &ebs::ROUTES;

/// The services of the Query protocol.
pub static SERVICES: [&Service; 3] = [EC2, &iam::SERVICE, &sts::SERVICE];

impl Service {
    /// The service of that name.
    pub fn find(name: &str) -> Option<&'static Service> {
        SERVICES.into_iter().find(|service| service.name == name)
    }

    /// Its operation of that name.
    pub fn operation(&self, name: &str) -> Option<&'static Operation> {
        self.operations.iter().find(|operation| operation.name == name)
    }
}

impl Shape {
    /// Its members, if it is a structure.
    pub fn members(&self) -> &'static [Member] {
        if let Shape::Structure(members) = self { members } else { &[] }
    }

    /// Its member of that name.
    pub fn member(&self, name: &str) -> Option<&'static Member> {
        self.members().iter().find(|member| member.name == name)
    }
}

const fn member(
    name: &'static str,
    wire: &'static str,
    location: &'static str,
    shape: &'static Shape,
) -> Member {
    Member { name, wire, location, required: false, shape }
}

const fn required(
    name: &'static str,
    wire: &'static str,
    location: &'static str,
    shape: &'static Shape,
) -> Member {
    Member { name, wire, location, required: true, shape }
}
