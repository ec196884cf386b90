//! Which lanes a run is of, and whether its disk is one that they can be tried on.

use crate::oracle::OnWire;
use crate::suite::{self, Lane, Suite};
use anyhow::bail;
use tornblk_model::crash::Profile;
use tornblk_model::event::Disk;

/// The lanes that are meant, with their suites' names.
pub(super) fn select(suites: &[Suite], names: &[String]) -> anyhow::Result<Vec<(String, Lane)>> {
    let all: Vec<(String, Lane)> = suites
        .iter()
        .flat_map(|s| s.lanes.iter().map(|lane| (s.name.clone(), lane.clone())))
        .collect();
    if names.is_empty() {
        return Ok(all);
    }
    // A lane's own name means that one alone.
    let exact = |name: &String| all.iter().any(|(_, lane)| lane.name == *name);
    let begins = |lane: &Lane, name: &String| {
        lane.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'))
    };
    let meant = |lane: &Lane, name: &String| {
        if exact(name) { lane.name == *name } else { begins(lane, name) }
    };
    for name in names {
        if !all.iter().any(|(_, lane)| meant(lane, name)) {
            let known: Vec<&str> = all.iter().map(|(_, lane)| lane.name.as_str()).collect();
            bail!("there is no lane \"{name}\"; there are {}", known.join(", "));
        }
    }
    let chosen = all.iter().filter(|(_, lane)| names.iter().any(|name| meant(lane, name)));
    Ok(chosen.cloned().collect())
}

/// The lanes that can be tried on their disks. Of whole suites those that cannot are left out, and
/// told; one that was chosen is an error.
pub(super) fn fitting(
    lanes: Vec<(String, Lane)>,
    profile: Option<&str>,
    whole_suites: bool,
    note: &mut dyn FnMut(&str),
) -> anyhow::Result<Vec<(String, Lane)>> {
    let mut fit = Vec::new();
    let mut first = None;
    for (suite, lane) in lanes {
        match check_disk(&lane, profile.unwrap_or(&lane.profile)) {
            Ok(()) => fit.push((suite, lane)),
            Err(error) if whole_suites => {
                note(&format!("left out: {error}"));
                first.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    match (fit.is_empty(), first) {
        (true, Some(error)) => Err(error),
        _ => Ok(fit),
    }
}

/// Is it a disk that the lane can be tried on? Asked once profile and front-end are known.
fn check_disk(lane: &Lane, name: &str) -> anyhow::Result<()> {
    let profile: Profile = name.parse()?;
    let refuse = |why: String| anyhow::anyhow!("lane {}: {why}", lane.name);
    suite::fits(lane.front_end, &profile).map_err(refuse)?;
    let Some(atomic) = &lane.atomic else { return Ok(()) };
    if profile.unit_max == 0 {
        return Err(refuse(format!(
            "it is about a disk's atomic limits, and one of profile {profile} has none"
        )));
    }
    let largest = lane.targets.iter().map(|t| u64::from(t.unit)).max().unwrap_or(0);
    if atomic.on_wire != OnWire::Any && largest > profile.unit_max {
        return Err(refuse(format!(
            "it writes {largest} bytes at once, and a disk of profile {profile} keeps {} whole",
            profile.unit_max
        )));
    }
    let end = lane.targets.iter().map(|t| t.start + t.end()).max().unwrap_or(0);
    if lane.is_raw() && end + suite::tried_at_the_end(&profile) > lane.capacity {
        return Err(refuse(format!(
            "with profile {profile} there is no room behind its targets for writes that must be \
             refused"
        )));
    }
    Ok(())
}

pub(super) fn check_profile(name: &str, lanes: &[(String, Lane)]) -> anyhow::Result<()> {
    let profile: Profile = name.parse()?;
    for (_, lane) in lanes {
        let disk = Disk { capacity: lane.capacity, lb_size: lane.logical_block_size };
        if let Err(error) = profile.check(&disk) {
            let fits = |l: &&(String, Lane)| {
                let disk = Disk { capacity: l.1.capacity, lb_size: l.1.logical_block_size };
                profile.check(&disk).is_ok()
            };
            let fitting: Vec<String> =
                lanes.iter().filter(fits).map(|(_, l)| format!("--lane {}", l.name)).collect();
            let hint = if fitting.is_empty() {
                "no lane that was asked for has such a disk".to_owned()
            } else {
                format!("with {} it fits", fitting.join(" "))
            };
            bail!("--profile on lane {}: {error}; {hint}", lane.name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::vm::FrontEnd;

    #[test]
    fn a_disk_that_a_lane_cannot_be_tried_on_is_refused() {
        let suite = suite::load("direct-atomic").unwrap();
        let lane =
            |name: &str| select(std::slice::from_ref(&suite), &[name.into()]).unwrap().remove(0).1;
        let refused =
            |lane: &Lane, profile: &str| check_disk(lane, profile).unwrap_err().to_string();
        for lane in &suite.lanes {
            check_disk(lane, &lane.profile).unwrap();
        }
        let mut raw = lane("raw");
        assert!(refused(&raw, "explicit64k").contains("virtio-blk cannot say"));
        raw.front_end = FrontEnd::Scsi;
        check_disk(&raw, "explicit64k").unwrap();
        assert!(refused(&raw, "req64k+b64k").contains("begins with explicit"));
        let hw = lane("hw-blk-raw");
        assert!(refused(&hw, "lb512").contains("has none"));
        assert!(refused(&hw, "req16k").contains("writes 65536 bytes at once"));
        check_disk(&lane("xfs-cow-above"), "req4k").unwrap();

        // Of a whole suite they are left out; chosen, they are refused.
        let all = || select(std::slice::from_ref(&suite), &[]).unwrap();
        let mut told = Vec::new();
        let fit = fitting(all(), Some("lb512"), true, &mut |text| told.push(text.to_owned()));
        let names: Vec<String> = fit.unwrap().into_iter().map(|(_, lane)| lane.name).collect();
        assert!(names.contains(&"raw".to_owned()) && !names.contains(&"hw-blk-raw".to_owned()));
        assert!(told.iter().any(|text| text.contains("left out: lane hw-blk-raw")), "{told:?}");
        assert!(fitting(all(), Some("lb512"), false, &mut |_| ()).is_err());
    }

    #[test]
    fn a_lanes_own_name_means_that_one() {
        let suite = [suite::load("direct-atomic").unwrap()];
        let names = |name: &str| {
            let lanes = select(&suite, &[name.into()]).unwrap();
            lanes.into_iter().map(|(_, lane)| lane.name).collect::<Vec<_>>()
        };
        assert_eq!(names("boundary-scsi"), ["boundary-scsi"]);
        assert_eq!(names("boundary").len(), 3);
    }

    #[test]
    fn lanes_are_selected_by_name_or_by_how_they_begin() {
        let suites = [suite::load("direct-atomic").unwrap()];
        let names = |given: &[&str]| {
            let given: Vec<String> = given.iter().map(|s| (*s).to_owned()).collect();
            select(&suites, &given)
                .map(|lanes| lanes.into_iter().map(|(_, lane)| lane.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&["raw"]).unwrap(), ["raw"]);
        assert_eq!(
            names(&["xfs-cow"]).unwrap(),
            ["xfs-cow-lb512", "xfs-cow-lb4k", "xfs-cow-above"]
        );
        assert_eq!(names(&[]).unwrap().len(), suites[0].lanes.len());
        let error = names(&["ra"]).unwrap_err().to_string();
        assert!(error.contains("there are raw, "), "{error}");
    }

    #[test]
    fn a_profile_that_does_not_fit_is_refused_with_the_lane() {
        let suites = [suite::load("direct-atomic").unwrap()];
        let lanes = select(&suites, &[]).unwrap();
        assert!(check_profile("req16k", &lanes).is_ok());
        assert!(check_profile("nonsense", &lanes).is_err());
        let error = format!("{:#}", check_profile("lb4k", &lanes).unwrap_err());
        assert!(error.contains("--profile on lane raw"), "{error}");
    }
}
