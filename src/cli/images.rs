//! `kiln image …`.

use std::path::Path;
use std::time::{Duration, Instant};

use kiln_controlplane::images::{Drivers, Image, ImageError, ImportRequest, Source, format_name, inspect};
use kiln_controlplane::printable;
use kiln_controlplane::volumes::Progress;
use serde::Serialize;

use crate::args::JsonArg;
use crate::daemon::{Daemon, Parameters};
use crate::error::Failure;
use crate::image_args::{CreateImageArgs, ImageCommand, ImportArgs, InspectArgs, RemoveArgs};
use crate::progress::{Bars, Spinner};
use crate::table::{Table, ago};
use crate::{open, print_json};

/// An image as `--json` shows it.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    id: String,
    name: Option<&'a str>,
    format: &'static str,
    sha256: &'a str,
    file_bytes: u64,
    virtual_bytes: u64,
    created: u64,
    source: &'a str,
    state: &'static str,
}

fn shown(image: &Image) -> Shown<'_> {
    Shown {
        id: image.id.to_string(),
        name: image.name.as_deref(),
        format: format_name(image.format),
        sha256: &image.sha256,
        file_bytes: image.file_bytes.as_bytes(),
        virtual_bytes: image.virtual_size.as_bytes(),
        created: image.created,
        source: &image.source,
        state: state(image),
    }
}

fn state(image: &Image) -> &'static str {
    match image.progress {
        Progress::Pending => "pending",
        Progress::Complete => "available",
        Progress::Failed => "failed",
    }
}

/// Dispatches.
pub fn image(state_dir: &Path, command: &ImageCommand) -> Result<(), Failure> {
    match command {
        ImageCommand::Create(args) => create(state_dir, args),
        ImageCommand::Import(args) => import(state_dir, args),
        ImageCommand::Ls(args) => list(state_dir, args),
        ImageCommand::Inspect(args) => show(state_dir, args),
        ImageCommand::Rm(args) => remove(state_dir, args),
    }
}

/// How often a new image is looked for, and how long it may take to be there.
const POLL: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(600);

fn create(state_dir: &Path, args: &CreateImageArgs) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let instance = plane.find(&args.instance)?.id;
    let parameters = Parameters::default()
        .with("InstanceId", instance)
        .with("Name", &args.name)
        .with("NoReboot", !args.reboot)
        .maybe("Description", args.description.as_ref());
    let daemon = Daemon::need(&plane, &format!("make an image of {instance}"))?;
    let id = daemon.call("CreateImage", parameters)?.text("imageId")?;
    let spinner = Spinner::new(format!("Making {id}"));
    let deadline = Instant::now() + PATIENCE;
    loop {
        match plane.images().find(&id)?.progress {
            Progress::Complete => break,
            Progress::Failed => {
                return Err(Failure::new(format!("{id} could not be made (see kiln events)")));
            }
            Progress::Pending if Instant::now() > deadline => {
                return Err(Failure::new(format!("{id} is not made yet (see kiln image ls)")));
            }
            Progress::Pending => std::thread::sleep(POLL),
        }
    }
    drop(spinner);
    crate::print(&format!("{id}\n"))
}

fn import(state_dir: &Path, args: &ImportArgs) -> Result<(), Failure> {
    let format = args.format.map(Into::into);
    // Looked at before the state directory is made for nothing.
    let source = Source::open(&args.file, format)?;
    let plane = open(state_dir)?;
    let request = ImportRequest {
        path: args.file.clone(),
        format,
        name: args.name.clone(),
        replace: args.replace,
        drivers: Drivers::default(),
    };
    let image = plane.images().import(&request, plane.clock(), &Bars)?;
    let problem = inspect(&plane.images().open(&image)?, source.format)
        .map_or_else(|e| Some(e.to_string()), |report| report.problem);
    if let Some(problem) = problem {
        eprintln!("kiln: warning: {} does not boot by itself: {}", image.id, printable(&problem));
    }
    if args.json {
        return print_json(&shown(&image));
    }
    crate::print(&format!("{}\n", image.id))
}

fn list(state_dir: &Path, args: &JsonArg) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let images = plane.images().list()?;
    if args.json {
        return print_json(&images.iter().map(shown).collect::<Vec<_>>());
    }
    let now = plane.clock().unix_seconds();
    let mut table = Table::new(["ID", "NAME", "FORMAT", "DISK", "FILE", "STATE", "IMPORTED"]);
    for image in &images {
        table.row([
            image.id.to_string(),
            image.name.clone().unwrap_or_default(),
            format_name(image.format).to_owned(),
            image.virtual_size.to_string(),
            image.file_bytes.to_string(),
            state(image).to_owned(),
            ago(image.created, now),
        ]);
    }
    crate::print(&table.render())
}

fn show(state_dir: &Path, args: &InspectArgs) -> Result<(), Failure> {
    let path = Path::new(&args.image);
    let format = args.format.map(Into::into);
    let is_path = args.image.contains('/');
    let plane = if is_path { None } else { Some(open(state_dir)?) };
    let imported = match &plane {
        Some(plane) => match plane.images().find(&args.image) {
            Ok(image) => Some((plane.images().open(&image)?, image)),
            Err(ImageError::NotFound { .. }) if path.exists() => None,
            Err(e) => return Err(e.into()),
        },
        None => None,
    };
    let spinner = Spinner::new("Looking");
    let (image, report) = match imported {
        Some((file, image)) => {
            let report = inspect(&file, image.format)?;
            (Some(image), report)
        }
        None => {
            let source = Source::open(path, format)?;
            (None, inspect(&source.file, source.format)?)
        }
    };
    drop(spinner);
    if args.json {
        return print_json(&serde_json::json!({
            "image": image.as_ref().map(shown),
            "contents": report.json,
        }));
    }
    if let Some(image) = &image {
        let mut table = Table::new(["IMAGE", &image.id.to_string()]);
        table.row(["name".into(), image.name.clone().unwrap_or_default()]);
        table.row(["format".into(), format_name(image.format).into()]);
        table.row(["sha256".into(), image.sha256.clone()]);
        table.row(["source".into(), image.source.clone()]);
        crate::print(&table.render())?;
    }
    crate::print(&report.render())
}

fn remove(state_dir: &Path, args: &RemoveArgs) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    for wanted in &args.images {
        let image = plane.images().remove(wanted)?;
        crate::print(&format!("{}\n", image.id))?;
    }
    Ok(())
}
