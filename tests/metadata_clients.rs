//! Roles, credentials and identity as unmodified clients inside an instance see them, with tokens
//! required.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

mod metadata_support;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use kiln_controlplane::credentials::{Issuer, Lifetime, NewRole, SourceSpec, StsSource};
use kiln_model::{Clock as _, UserData, Utc};
use metadata_support::{IMDS, Instance, World, python, report, runtime, until};

fn role(world: &World, name: &str, source: SourceSpec, seconds: u64) {
    let lifetime = Lifetime::try_from(seconds).unwrap();
    let wish = NewRole { name: name.parse().unwrap(), description: String::new(), source, lifetime };
    world.plane.roles().create_with_profile(&wish).unwrap();
}

fn with_role(name: &str) -> impl FnOnce(&mut kiln_controlplane::instances::LaunchRequest) {
    let name = name.parse().unwrap();
    move |request| request.profile = Some(name)
}

#[test]
fn identity_verifies_with_openssl_as_aws_documents_it() {
    let Some(world) = World::new() else { return };
    let runtime = runtime();
    let instance = world.launch(&runtime, |_| ());
    let (dir, keys) = (world.path("."), world.plane.keys().unwrap());
    std::fs::write(world.path("certificate"), keys.certificate_pem()).unwrap();
    let dir = dir.to_str().unwrap();
    let text = instance.sh(&format!(
        "cd {dir}; B=dynamic/instance-identity
         imds $B/document > document
         imds $B/signature | base64 -d > signature
         openssl x509 -in certificate -noout -pubkey > key
         openssl dgst -sha256 -verify key -signature signature document
         for form in rsa2048 pkcs7; do
           {{ echo '-----BEGIN PKCS7-----'; imds $B/$form; echo; echo '-----END PKCS7-----'; }} > $form
           openssl smime -verify -in $form -inform PEM -certfile certificate -noverify -out content 2>&1
           cmp content document && echo same
         done
         sed s/t3.micro/t3.large/ document > forged
         openssl dgst -sha256 -verify key -signature signature forged || echo forged: refused"
    ));
    assert_eq!(
        text,
        "Verified OK\nVerification successful\nsame\nVerification successful\nsame\n\
         Verification failure\nforged: refused\n"
    );
    let document: serde_json::Value =
        serde_json::from_slice(&std::fs::read(world.path("document")).unwrap()).unwrap();
    assert_eq!(document["instanceId"], instance.id.to_string());
    assert_eq!(document["privateIp"], instance.address().to_string());
    instance.assert_nothing_leaked();
}

#[test]
fn token_of_one_instance_is_refused_by_another() {
    let Some(world) = World::new() else { return };
    let runtime = runtime();
    let (one, two) = (world.launch(&runtime, |_| ()), world.launch(&runtime, |_| ()));
    let token = one.sh("echo $TOKEN");
    let ask = format!(
        "curl -s -m 5 -o /dev/null -w '%{{http_code}}' -H 'X-aws-ec2-metadata-token: {}' http://{IMDS}/latest/meta-data/instance-id",
        token.trim()
    );
    assert_eq!(one.sh(&ask), "200");
    assert_eq!(two.sh(&ask), "401");
    assert_eq!(two.sh("imds meta-data/instance-id"), two.id.to_string());
}

#[test]
fn windows_user_data_are_served_byte_for_byte() {
    let Some(world) = World::new() else { return };
    let runtime = runtime();
    let forms: [&[u8]; 5] = [
        b"<script>\r\necho %DATE% > C:\\log.txt\r\n</script>\r\n",
        b"<powershell>\r\n$f = [char]0x20AC\r\n</powershell>\r\n<persist>true</persist>",
        b"<script>dir</script><powershell>Get-Date</powershell>\n<persist>true</persist>\n",
        b"version: 1.1\r\ntasks:\r\n- task: executeScript\r\n  inputs:\r\n  - frequency: always\r\n    type: powershell\r\n    runAs: admin\r\n    content: |-\r\n      Get-Process\r\n",
        b"\xff\xfe<\0s\0c\0r\0i\0p\0t\0>\0",
    ];
    for form in forms {
        let instance = world.launch(&runtime, |r| r.user_data = Some(UserData::new(form.to_vec()).unwrap()));
        let copy = world.path("copy");
        instance.sh(&format!("imds user-data > {}", copy.display()));
        assert_eq!(std::fs::read(&copy).unwrap(), form);
        assert_eq!(instance.sh("imds meta-data/hibernation/configured"), "false");
    }
}

/// A Python that takes a line, runs it as an expression and prints its value.
struct Client {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Client {
    fn new(mut command: Command, prelude: &str) -> Self {
        let program = format!(
            "import sys\n{prelude}\nfor line in sys.stdin:\n    try: print(eval(line), flush=True)\n    \
             except Exception as e: print(type(e).__name__, e, flush=True)\n"
        );
        let mut child =
            command.args(["-c", &program]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Client { stdin: child.stdin.take().unwrap(), stdout, child }
    }

    fn ask(&mut self, expression: &str) -> String {
        writeln!(self.stdin, "{expression}").unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const BOTO: &str = "import boto3
def fresh():
    c = boto3.Session().get_credentials()
    if c is None: return None
    f = c.get_frozen_credentials()
    return c.method, f.access_key, f.secret_key, f.token";

#[test]
fn boto3_follows_a_role_through_attach_replace_and_detach() {
    let Some(world) = World::new() else { return };
    let Some(python) = python() else { return };
    let runtime = runtime();
    role(&world, "web", SourceSpec::Issuer, 21_600);
    role(&world, "db", SourceSpec::Issuer, 21_600);
    let instance = world.launch(&runtime, |_| ());
    let mut client = Client::new(instance.command(python), BOTO);
    assert_eq!(client.ask("fresh()"), "None");
    let seen = |what: &str, path: &str, code: &str| {
        until(&runtime, what, || {
            instance.sh(&format!("status meta-data/iam/security-credentials/{path}")) == code
        });
    };
    world.plane.associate_profile(instance.id, "web").unwrap();
    seen("the role", "web", "200");
    // What boto3 has is what a verifier accepts.
    let key = client.ask("fresh()[1]");
    let (secret, token) = (client.ask("fresh()[2]"), client.ask("fresh()[3]"));
    let issuer = Issuer::new(world.plane.keys().unwrap());
    let session = issuer.verify(&key, &token, world.clock.unix_seconds()).unwrap();
    assert_eq!(session.secret_access_key.expose(), &secret);
    assert!(session.principal.arn.ends_with(&format!(":assumed-role/web/{}", instance.id)));

    world.plane.replace_profile(instance.id, "db").unwrap();
    seen("the other role", "db", "200");
    assert_eq!(instance.sh("status meta-data/iam/security-credentials/web"), "404");
    assert_ne!(client.ask("fresh()[1]"), key);
    world.plane.disassociate_profile(instance.id).unwrap();
    seen("no role", "", "404");
    assert_eq!(client.ask("fresh()"), "None");
    assert_eq!(instance.counters().imds_no_token, 0, "tokens throughout");
    instance.assert_nothing_leaked();
}

#[test]
fn clients_keep_working_through_rotations_of_a_moved_clock() {
    let Some(world) = World::new() else { return };
    let Some(python) = python() else { return };
    let Some(environment) = world.clock.environment() else { return };
    let runtime = runtime();
    role(&world, "web", SourceSpec::Issuer, 21_600);
    let instance = world.launch(&runtime, with_role("web"));
    let mut command = instance.command(python);
    command.envs(environment);
    // Where an answer takes longer than a second, botocore prolongs what it has.
    command.env("AWS_METADATA_SERVICE_TIMEOUT", "60");
    // One session for the whole time: its own refreshing is what is tested.
    let kept = format!("{BOTO}\nkept = boto3.Session().get_credentials()\n");
    let mut client = Client::new(command, &kept);
    let issuer = Issuer::new(world.plane.keys().unwrap());
    let mut keys = std::collections::BTreeSet::new();
    for _ in 0..12 {
        let set = client.ask("' '.join(kept.get_frozen_credentials()[:3])");
        let parts: Vec<&str> = set.split(' ').collect();
        let [key, secret, token] = parts[..] else { panic!("{set}") };
        let session = issuer.verify(key, token, world.clock.unix_seconds()).unwrap();
        assert_eq!(session.secret_access_key.expose(), secret);
        keys.insert(key.to_owned());
        world.clock.pass(2 * 3600 - 60);
        settle(&runtime, &world, &instance, "web");
    }
    assert!(keys.len() >= 4, "{} sets in 24 hours", keys.len());
}

#[test]
fn rust_sdk_gets_credentials_and_region() {
    let Some(world) = World::new() else { return };
    let runtime = runtime();
    role(&world, "web", SourceSpec::Issuer, 21_600);
    let instance = world.launch(&runtime, with_role("web"));
    instance.enter();
    runtime.block_on(async {
        use aws_config::imds::credentials::ImdsCredentialsProvider;
        use aws_config::imds::region::ImdsRegionProvider;
        use aws_credential_types::provider::ProvideCredentials as _;
        let set = ImdsCredentialsProvider::builder().build().provide_credentials().await.unwrap();
        let issuer = Issuer::new(world.plane.keys().unwrap());
        let token = set.session_token().unwrap();
        let session = issuer.verify(set.access_key_id(), token, world.clock.unix_seconds()).unwrap();
        assert_eq!(session.secret_access_key.expose(), set.secret_access_key());
        let region = ImdsRegionProvider::builder().build().region().await;
        assert_eq!(region.unwrap().as_ref(), "us-east-1");
    });
    assert_eq!(instance.counters().imds_no_token, 0);
}

/// An S3, IAM and STS server inside an instance's namespace.
struct Server {
    child: Child,
}

const ADMIN: &str = "import boto3, json, urllib.request
URL = 'http://127.0.0.1:5000'
def client(name): return boto3.client(name, endpoint_url=URL, region_name='us-east-1', aws_access_key_id='x', aws_secret_access_key='y')
def document(*statements): return json.dumps({'Version': '2012-10-17', 'Statement': list(statements)})
iam, s3 = client('iam'), client('s3')
s3.create_bucket(Bucket='app'); s3.create_bucket(Bucket='other')
iam.create_role(RoleName='app', AssumeRolePolicyDocument=document({'Effect': 'Allow', 'Principal': {'AWS': '*'}, 'Action': 'sts:AssumeRole'}))
iam.put_role_policy(RoleName='app', PolicyName='p', PolicyDocument=document({'Effect': 'Allow', 'Action': ['s3:GetObject', 's3:PutObject'], 'Resource': 'arn:aws:s3:::app/*'}))
iam.create_user(UserName='host')
iam.put_user_policy(UserName='host', PolicyName='p', PolicyDocument=document({'Effect': 'Allow', 'Action': 'sts:AssumeRole', 'Resource': '*'}))
key = iam.create_access_key(UserName='host')['AccessKey']
urllib.request.urlopen(urllib.request.Request(URL + '/moto-api/reset-auth', data=b'0', method='POST', headers={'Content-Type': 'text/plain'})).read()
print(key['AccessKeyId'], key['SecretAccessKey'])";

impl Server {
    /// Starts it and makes a bucket, a role that may use it and a user that may assume the role. From
    /// then on it refuses what is not allowed. Answers the user's keys.
    fn start(
        instance: &Instance,
        python: &std::path::Path,
        clock: &[(&'static str, String)],
    ) -> (Self, String) {
        let mut command = instance.command(python);
        command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", "5000"]).envs(clock.iter().cloned());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let server = Server { child };
        instance.sh("for _ in $(seq 300); do curl -s -m 1 -o /dev/null http://127.0.0.1:5000/ && exit; sleep 0.2; done; exit 1");
        let output =
            instance.command(python).args(["-c", ADMIN]).envs(clock.iter().cloned()).output().unwrap();
        assert!(output.status.success(), "{}", report(&output));
        (server, String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const APPLICATION: &str = "import boto3
s3 = boto3.client('s3', endpoint_url='http://127.0.0.1:5000', region_name='us-east-1')
def work(n, bucket='app'):
    s3.put_object(Bucket=bucket, Key=str(n), Body=b'value %d' % n)
    return s3.get_object(Bucket=bucket, Key=str(n))['Body'].read().decode()
def key(): return s3._request_signer._credentials.access_key";

const HOST_KEYS: &str = "KILN_TEST_HOST_CREDENTIALS";

#[test]
fn application_reads_and_writes_its_bucket_through_three_rotations() {
    // The SDK looks for the host's credentials where every tool does, so they are given to a process
    // of its own: this test, once more.
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "application_with_host_credentials", "--ignored", "--nocapture"])
        .env("AWS_CONFIG_FILE", "/nonexistent")
        .env(
            "AWS_SHARED_CREDENTIALS_FILE",
            std::env::temp_dir().join(format!("kiln-host-{}", std::process::id())),
        )
        .env(HOST_KEYS, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success() && text.contains("1 passed"), "{}", report(&output));
}

#[test]
#[ignore = "runs inside application_reads_and_writes_its_bucket_through_three_rotations"]
fn application_with_host_credentials() {
    if std::env::var_os(HOST_KEYS).is_none() {
        return;
    }
    let Some(world) = World::new() else { return };
    let Some(python) = python() else { return };
    let Some(environment) = world.clock.environment() else { return };
    let runtime = runtime();
    let sts = |arn: &str| {
        SourceSpec::Sts(StsSource {
            role_arn: arn.to_owned(),
            endpoint: Some("http://127.0.0.1:5000".into()),
            ..StsSource::default()
        })
    };
    role(&world, "app", sts("arn:aws:iam::123456789012:role/app"), 3600);
    let instance = world.launch(&runtime, with_role("app"));
    instance.enter();
    let (_server, keys) = Server::start(&instance, &python, &environment);
    let file = std::path::PathBuf::from(std::env::var_os("AWS_SHARED_CREDENTIALS_FILE").unwrap());
    let (id, secret) = keys.split_once(' ').unwrap();
    std::fs::write(&file, format!("[default]\naws_access_key_id={id}\naws_secret_access_key={secret}\n"))
        .unwrap();
    settle(&runtime, &world, &instance, "app");

    let mut command = instance.command(&python);
    command.envs(environment.clone());
    let mut application = Client::new(command, APPLICATION);
    let mut used = std::collections::BTreeSet::new();
    for round in 0..12 {
        assert_eq!(application.ask(&format!("work({round})")), format!("value {round}"));
        let refused = application.ask(&format!("work({round}, 'other')"));
        assert!(refused.contains("(AccessDenied)"), "{refused}");
        used.insert(application.ask("key()"));
        world.clock.pass(25 * 60);
        settle(&runtime, &world, &instance, "app");
    }
    println!("{} sets were used: {used:?}", used.len());
    assert!(used.len() >= 4, "{used:?}");
    assert!(!used.contains(id), "the host's own key stays on the host");
    let all = instance.sh("imds meta-data/iam/security-credentials/app");
    assert!(!all.contains(secret), "{all}");
    std::fs::remove_file(&file).unwrap();
}

/// Waits until a set is there that need not be replaced yet, and is served: a client that came between
/// the two would prolong the one it has.
#[track_caller]
fn settle(runtime: &tokio::runtime::Runtime, world: &World, instance: &Instance, role: &str) {
    until(runtime, "a good set", || {
        let status = world.plane.credential_status().unwrap();
        status
            .iter()
            .any(|s| s.code == "Success" && s.error.is_none() && s.next_fetch > world.clock.unix_seconds())
    });
    // Clients look for another set in the last quarter of an hour.
    const SOON: u64 = 15 * 60;
    until(runtime, "the set in the instance", || {
        let served = instance.sh(&format!("imds meta-data/iam/security-credentials/{role}"));
        let set: serde_json::Value = serde_json::from_str(&served).unwrap();
        // The first set of all is noted a moment before it is served.
        let expiry = set["Expiration"].as_str().map(|expiry| Utc::parse_rfc3339(expiry).unwrap());
        expiry.is_some_and(|expiry| expiry > world.clock.unix_seconds() + SOON)
    });
}
