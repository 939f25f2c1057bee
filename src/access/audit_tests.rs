//! Tests of the lines of the audit log, and of their bounds.

use super::*;

fn lines(receiver: &Receiver<Message>) -> Vec<serde_json::Value> {
    let line = |message| match message {
        Message::Line(line) => {
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1, "one line, with its end");
            Some(serde_json::from_slice(&line).expect("JSON"))
        }
        Message::Wake => None,
    };
    receiver.try_iter().filter_map(line).collect()
}

fn known(name: &str) -> Option<Name> {
    Some(name.into())
}

#[test]
fn a_call_has_one_line_with_who_and_how_it_ended() {
    let (audit, receiver) = Audit::new();
    let address = Some("192.0.2.1:9".parse().expect("an address"));
    let mut extensions = Extensions::new();
    extensions.insert(audit.call("/Table/Upload", known("ingest"), address, false));
    let call: AuditedCall = extensions.get().cloned().expect("the call");
    added(&extensions, Added { part: 3, rows: 2, bytes: 18, replayed: false });
    call.end(Outcome::Ok, "Ok");
    audit.call("GET /\n\u{1b}\u{e9}".to_owned() + &"x".repeat(1000), None, None, false).end(Outcome::Error, "404");
    let written = lines(&receiver);
    let [upload, other] = &written[..] else { panic!("{written:?}") };
    for (field, value) in
        [("token", "ingest"), ("address", "192.0.2.1:9"), ("call", "/Table/Upload"), ("outcome", "ok")]
    {
        assert_eq!(upload[field], value, "{upload}");
    }
    assert_eq!((&upload["part"], &upload["rows"], &upload["bytes"]), (&3.into(), &2.into(), &18.into()));
    assert_eq!((&other["token"], &other["address"]), (&serde_json::Value::Null, &serde_json::Value::Null));
    let text = other["call"].as_str().expect("a text");
    assert!(text.starts_with("GET /\n\u{1b}\u{e9}x") && text.len() == AUDIT_TEXT_BYTES_MAX);
}

#[test]
fn an_answer_that_tells_of_an_error_in_its_own_way_is_no_success() {
    let (audit, receiver) = Audit::new();
    let mut extensions = Extensions::new();
    let call = audit.call("/Table/ColumnSum", known("a"), None, false);
    extensions.insert(call.clone());
    failed(&extensions);
    about_part(&extensions, 7);
    call.end(Outcome::Ok, "Ok");
    let [line] = &lines(&receiver)[..] else { panic!("one line") };
    assert_eq!((&line["outcome"], &line["part"]), (&"error".into(), &7.into()));
}

#[test]
fn a_form_that_fails_after_its_first_file_has_two_lines() {
    let (audit, receiver) = Audit::new();
    let mut extensions = Extensions::new();
    let call = audit.call("POST /api/v1/table/parts", known("a"), None, false);
    extensions.insert(call.clone());
    added(&extensions, Added { part: 1, rows: 1, bytes: 4, replayed: false });
    call.end(Outcome::Error, "400");
    let outcomes: Vec<_> = lines(&receiver).iter().map(|line| line["outcome"].clone()).collect();
    assert_eq!(outcomes, ["ok", "error"]);
}

#[test]
fn strangers_use_up_no_lines_of_those_who_have_a_token() {
    let (audit, receiver) = Audit::new();
    let refuse =
        |token: Option<Name>| audit.call("/Table/Upload", token, None, false).end(Outcome::Refused, "Unauthenticated");
    let started = audit.0.started.elapsed().as_secs();
    (0..500).for_each(|_| refuse(None));
    (0..500).for_each(|_| audit.call("GET /x", None, None, true).end(Outcome::Error, "414"));
    refuse(known("a"));
    if audit.0.started.elapsed().as_secs() != started {
        return; // another second has begun meanwhile
    }
    let written = lines(&receiver);
    let max = usize::try_from(AUDIT_REFUSALS_PER_S_MAX).expect("few");
    assert_eq!(written.len(), max + 1);
    assert_eq!(written[max]["token"], "a");
    assert_eq!((audit.take_left_out(), audit.take_left_out()), (900, 0));
    assert_eq!(audit.lost(), 0);
}

#[test]
fn a_full_queue_loses_lines_and_counts_them() {
    for (text_bytes, kept_min) in [(1, 1000), (AUDIT_TEXT_BYTES_MAX, 500)] {
        let (audit, receiver) = Audit::new();
        let call = "x".repeat(text_bytes);
        (0..3000).for_each(|_| audit.call(&call, None, None, false).end(Outcome::Ok, "Ok"));
        let lost = usize::try_from(audit.lost()).expect("few");
        assert_eq!(receiver.len() + lost, 3000);
        assert!(receiver.len() >= kept_min, "{}", receiver.len());
        assert!(audit.0.bytes.load(Ordering::Relaxed) <= AUDIT_QUEUE_BYTES_MAX);
        for message in receiver.try_iter() {
            if let Message::Line(line) = message {
                audit.taken(&line);
            }
        }
        assert_eq!(audit.0.bytes.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn a_count_begins_anew_each_second() {
    let count = PerSecond::default();
    assert!(count.add(5, 2) && count.add(5, 2) && !count.add(5, 2));
    assert!(count.add(6, 2) && count.add(6, 2) && !count.add(6, 2));
}
