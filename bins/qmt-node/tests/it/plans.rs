//! Plans and loads of models that are on another node's disk, or on none.

use mesh_control::{ErrorCode, LoadRequest, PlanRequest};
use mesh_inference::gguf::tiny::TinyModel;

use crate::support::{Host, api_error, pair, stop_both, until};

fn planning(model: &str) -> PlanRequest {
    PlanRequest { model: model.to_owned(), ..PlanRequest::default() }
}

fn loading(model: &str) -> LoadRequest {
    LoadRequest { model: model.to_owned(), ..LoadRequest::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_made_by_the_member_that_has_the_file() {
    let (first, second) = pair().await;
    first.add_model("tiny", &TinyModel::default());
    let asked = PlanRequest { split: Some(true), context_tokens: Some(1000), ..planning("tiny") };
    let own = first.client.plan(&asked).await.unwrap();
    assert!(own.text.starts_with("tiny\n"), "{}", own.text);
    let plan =
        until("the second node knows who has it", || async { second.client.plan(&asked).await.ok() }).await;
    assert!(plan.text.starts_with("as first sees it, which has the file:\ntiny\n"), "{}", plan.text);
    assert!(plan.text.contains("1 x 1000 tokens") && plan.text.contains("alone on first"), "{}", plan.text);
    assert_eq!((plan.model.as_str(), &plan.plan["model"]), ("tiny", &"tiny".into()));
    for tokens in [0, 16_777_217] {
        let asked = PlanRequest { context_tokens: Some(tokens), ..planning("tiny") };
        for host in [&first, &second] {
            let error = api_error(host.client.plan(&asked).await);
            assert!(error.message.contains("1 to 16777216 tokens"), "{error:?}");
        }
    }
    stop_both(first, second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_means_no_model_here_is_mended_by_what_there_is() {
    let (first, second) = pair().await;
    let refused = async |host: &Host, model: &str| {
        let errors = [
            api_error(host.client.plan(&planning(model)).await),
            api_error(host.client.load(&loading(model)).await),
        ];
        assert_eq!(errors[0], errors[1], "plan and load say the same");
        assert_eq!(errors[0].code, ErrorCode::UnknownModel);
        errors[0].mend.clone().unwrap()
    };
    let mend = refused(&first, "nothing").await;
    assert!(mend.starts_with("there is no model on this disk yet; put a GGUF file into /"), "{mend}");
    assert!(mend.ends_with("qmt-cli models pull org/repo/file.gguf`"), "{mend}");
    first.add_model("tiny", &TinyModel::default());
    let mend = refused(&first, "nothing").await;
    assert!(mend.starts_with("on this disk is: tiny; put "), "{mend}");
    let mend = until("the second node knows who has it", || async {
        let error = api_error(second.client.load(&loading("tiny")).await);
        error.mend.filter(|mend| mend.contains("first"))
    })
    .await;
    let named = "first has it: `qmt-cli load tiny --node first` serves it there, `qmt-cli models pull tiny` brings it here";
    assert_eq!(mend, named);
    stop_both(first, second).await;
}
