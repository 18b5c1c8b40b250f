"""What the views change, the encoder unlearns: letters or colours, from the same images by the same method.

python recipes/show_invariance.py                                       embedded letters, SimCLR twice, minutes
python recipes/show_invariance.py --max_steps 600

Two encoders that differ in one thing: whether the views of a letter have other colours. Where they have, colour does
not help to find the other view, and the encoder keeps the letter; where they have not, the colour is all it takes.
Ends with probes of both for letter and colour. Look at your own views with recipes/show_views.py.
"""

from hfssl.cli.command import command


VIEWS = {
    "colours change": {"jitter": (0.8, 0.8, 0.8, 0.5), "grey_probability": 0.2},
    "colours stay": {"jitter": (0.0, 0.0, 0.0, 0.0), "grey_probability": 0.0},
}
LABELS = {"letter": "label", "colour": "color"}


@command
def main():
    from hfssl import RecipeParser, SimclrForPreTraining, SSLTrainer, SSLTrainingArguments
    from hfssl.cli.image.data import ImageData, ImageDataArguments
    from hfssl.cli.image.encoders import VisionEncoderArguments, make_views
    from hfssl.cli.image.invariance import ShowInvariance
    from hfssl.cli.labelled import load_splits
    from hfssl.cli.modality import build_method
    from hfssl.data.image.views import ViewArguments
    from hfssl.evaluation.probes import probe_table, title_of
    from hfssl.evaluation.results import aligned

    (recipe,) = RecipeParser(ShowInvariance, description=__doc__).parse()
    data, encoder = ImageData(ImageDataArguments(dataset="letters")), VisionEncoderArguments()
    table: dict[str, dict[str, float]] = {}
    for name, colours in VIEWS.items():
        folder = f"{recipe.output_dir}/{name.replace(' ', '_')}"
        args = SSLTrainingArguments(
            folder, max_steps=recipe.max_steps, per_device_train_batch_size=256, lr_scheduler_type="cosine",
            seed=recipe.seed, save_strategy="no", eval_strategy="no", report_to="none",
        )  # fmt: skip
        views = make_views(SimclrForPreTraining, encoder, {}, data, ViewArguments(**colours), {*colours})
        model = build_method(SimclrForPreTraining, encoder, {}, views, args, set())
        SSLTrainer(model, args, data.stream(args, views), settings=data.settings | views.settings).train()
        processor = views.image_processor()
        for what, column in LABELS.items():
            train, test = load_splits("letters", label_column=column, max_train_samples=3000)
            for result in probe_table(model.encoder, processor, train, test, name=name, pictures=False):
                probe = f"{what}, {title_of(result)}"
                row = table.setdefault(probe, {"random encoder": result.baselines["random_init"]})
                row[name] = result.value
        model.export_encoder(folder)
        processor.save_pretrained(folder)
    columns = [*VIEWS, "random encoder"]
    rows = [[probe, *(f"{row[column]:.3f}" for column in columns)] for probe, row in table.items()]
    print("\n" + aligned([["", *columns], *rows]))


if __name__ == "__main__":
    main()
