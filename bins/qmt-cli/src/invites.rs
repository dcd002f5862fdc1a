//! How machines come into a mesh and leave it: `invite`, `invites`, `revoke`, `join`, `leave`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use mesh_control::{
    AppointRequest, Client, InviteCreated, InviteRequest, InviteView, JoinRequest, LeaveRequest,
    RecoverRequest, RevokeRequest, Revoked, RevokedKind, Role,
};
use mesh_identity::{UnixTime, qr};
use serde::Serialize;

use crate::args::InviteArgs;
use crate::failure::Failure;
use crate::screen::Screen;
use crate::table::Table;
use crate::units;

/// Longest invite that is read from standard input, bytes; a token has a few hundred characters.
const INVITE_BYTES_MAX: u64 = 64 * 1024;

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    invite: &'a InviteCreated,
    /// The QR code as text, when it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    qr: Option<String>,
}

pub(crate) async fn invite(client: &Client, screen: &Screen, args: InviteArgs) -> Result<(), Failure> {
    let mut svg = match &args.svg {
        Some(path) => Some((path, create(path)?)), // before there is an invite that nobody could read
        None => None,
    };
    let role = match args.role.as_deref() {
        Some("client") => Role::Client,
        _ => Role::Member,
    };
    let request = InviteRequest {
        name: args.name,
        ttl: args.ttl,
        uses: args.uses,
        role: Some(role),
        can_invite: Some(args.can_invite),
        scope: args.scope,
    };
    let created = client.invite(&request).await?;
    if let Some((path, file)) = &mut svg {
        let drawn = qr::svg(&created.url).map_err(|error| Failure::new("qr", error.to_string()))?;
        file.write_all(drawn.as_bytes()).map_err(|error| unwritable(path, &error))?;
    }
    let code = args.qr.then(|| qr::terminal(&created.url)).transpose();
    let code = code.map_err(|error| Failure::new("qr", error.to_string()))?;
    let shown = Shown { invite: &created, qr: code };
    screen.show(&shown, |shown| match &shown.qr {
        Some(code) => format!("{}\n{code}", created.token),
        None => created.token.clone(),
    })?;
    if let Some(file) = &created.recovery_key_file {
        screen.note(&format!(
            "founded the mesh {}; its recovery key is in {file}: move it to a safe place",
            created.scope_name
        ));
    }
    screen.note(&terms(&created, role));
    if let Some(path) = &args.svg {
        screen.note(&format!("its QR code is in {}", path.display()));
    }
    screen.note("on the other machine: qmt-cli join TOKEN, or qmt-node --join TOKEN");
    Ok(())
}

/// What the invite is good for, and how to take it back.
fn terms(created: &InviteCreated, role: Role) -> String {
    let admits = match created.max_uses {
        0 => "any number of nodes".to_owned(),
        uses => units::count(uses as usize, "node"),
    };
    let end = match created.expires_at {
        None => "never ends".to_owned(),
        Some(time) => format!("ends in {}", units::duration(time.saturating_sub(UnixTime::now().0))),
    };
    format!(
        "this invite admits {admits} to {} as {role} and {end}; take it back with: qmt-cli revoke {}",
        created.scope_name, created.invite_id
    )
}

fn create(path: &Path) -> Result<File, Failure> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600); // it admits whoever reads it
    options.open(path).map_err(|error| unwritable(path, &error))
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::new("output", format!("{} cannot be written: {error}", path.display()))
}

pub(crate) async fn list(client: &Client, screen: &Screen) -> Result<(), Failure> {
    let invites = client.invites().await?;
    if invites.is_empty() {
        screen.note("no invites; make one with `qmt-cli invite`");
    }
    screen.show(&invites, |invites| listing(invites, UnixTime::now().0))
}

fn listing(invites: &[InviteView], now: u64) -> String {
    if invites.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["ID", "MESH", "ROLE", "USED", "ENDS", "STATE"]);
    for invite in invites {
        let used = match invite.max_uses {
            0 => format!("{} of any", invite.uses),
            max => format!("{} of {max}", invite.uses),
        };
        table.row([
            invite.id.clone(),
            invite.scope_name.clone(),
            invite.role.to_string(),
            used,
            units::end(invite.expires_at, now),
            state(invite, now).to_owned(),
        ]);
    }
    table.to_string()
}

fn state(invite: &InviteView, now: u64) -> &'static str {
    if invite.revoked {
        "revoked"
    } else if invite.expires_at.is_some_and(|end| end <= now) {
        "expired"
    } else if invite.max_uses > 0 && invite.uses >= invite.max_uses {
        "used up"
    } else {
        "open"
    }
}

pub(crate) async fn revoke(
    client: &Client,
    screen: &Screen,
    subject: String,
    scope: Option<String>,
    recovery_key: Option<PathBuf>,
) -> Result<(), Failure> {
    let revoked = match recovery_key {
        Some(file) => {
            let recovery_key_file = absolute(&file)?;
            client.recover(&RecoverRequest { subject, scope, recovery_key_file }).await?
        }
        None => client.revoke(&RevokeRequest { subject, scope }).await?,
    };
    screen.show(&revoked, |revoked: &Revoked| match revoked.kind {
        RevokedKind::Invite => {
            format!("revoked the invite {}: it admits nobody, and whoever joined with it is out", revoked.id)
        }
        _ => format!("revoked {} ({}): its membership ended", revoked.name, revoked.id),
    })
}

pub(crate) async fn appoint(
    client: &Client,
    screen: &Screen,
    node: String,
    scope: Option<String>,
    recovery_key: Option<PathBuf>,
) -> Result<(), Failure> {
    let recovery_key_file = recovery_key.map(|file| absolute(&file)).transpose()?;
    let appointed = client.appoint(&AppointRequest { node, scope, recovery_key_file }).await?;
    screen.show(&appointed, |appointed| {
        format!("{} is an admin now: it may admit, renew and revoke", appointed.name)
    })?;
    screen.note(&format!("take it back with: qmt-cli revoke {}", appointed.id));
    Ok(())
}

/// The node opens the file, and it has another working directory.
fn absolute(file: &Path) -> Result<String, Failure> {
    let path =
        std::path::absolute(file).map_err(|error| Failure::usage(format!("{}: {error}", file.display())))?;
    match path.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(Failure::usage(format!("{} is no path of text", file.display()))),
    }
}

pub(crate) async fn join(client: &Client, screen: &Screen, token: String) -> Result<(), Failure> {
    let token = if token == "-" { from_stdin()? } else { token };
    screen.progress("joining ...");
    let joined = client.join(&JoinRequest { token }).await?;
    screen.show(&joined, |joined| format!("joined {} as {}", joined.name, joined.role))?;
    screen.note("see who is there with `qmt-cli nodes`, and what they serve with `qmt-cli models`");
    Ok(())
}

fn from_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    io::stdin()
        .lock()
        .take(INVITE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|error| Failure::new("input", format!("standard input cannot be read: {error}")))?;
    match text.split_whitespace().next() {
        // `qmt-cli invite --qr` prints more than the token, and the token first.
        Some(token) => Ok(token.to_owned()),
        None => Err(Failure::usage("standard input holds no invite")),
    }
}

pub(crate) async fn leave(client: &Client, screen: &Screen, scope: String) -> Result<(), Failure> {
    let left = client.leave(&LeaveRequest { scope }).await?;
    screen.show(&left, |left| format!("left {}", left.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_says_which_invites_still_admit() {
        let invite = |id: &str, uses, max_uses, expires_at, revoked| InviteView {
            id: id.to_owned(),
            scope_name: "home".to_owned(),
            role: Role::Member,
            uses,
            max_uses,
            expires_at,
            revoked,
            ..InviteView::default()
        };
        let invites = [
            invite("a", 0, 1, Some(8_200), false),
            invite("b", 7, 0, None, false),
            invite("c", 2, 2, None, false),
            invite("d", 0, 1, Some(940), false),
            invite("e", 0, 1, None, true),
        ];
        let expected = "\
ID  MESH  ROLE    USED      ENDS       STATE
a   home  member  0 of 1    in 2 h     open
b   home  member  7 of any  never      open
c   home  member  2 of 2    never      used up
d   home  member  0 of 1    1 min ago  expired
e   home  member  0 of 1    never      revoked
";
        assert_eq!(listing(&invites, 1_000), expected);
    }
}
