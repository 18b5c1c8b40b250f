"""SigLIP: two encoders of images and texts, or of another pair, that tell of each two whether they belong together.

accelerate launch recipes/siglip.py                         embedded characters, minutes on a laptop
accelerate launch recipes/siglip.py --dataset my_pairs/ --image_encoder siglip-image-small-patch8
accelerate launch recipes/siglip.py --dataset my_pairs/ --encoder NAME           continue a stock pair
accelerate launch recipes/siglip.py --dataset my_pairs/ --image_encoder facebook/dinov2-small --frozen_tower image
accelerate launch recipes/siglip.py --dataset my_pairs/ --contrastive_batch_size 4096   in the memory of 128
accelerate launch recipes/siglip.py --dataset my_pairs/ --pair image,audio       images and sounds
accelerate launch recipes/siglip.py --config recipes/configs/siglip_base.yaml
torchrun --nproc_per_node 2 recipes/siglip.py                       several processes, one batch

A folder of pairs has dog.txt beside dog.jpg, or a metadata.jsonl. Ends with retrieval both ways beside the untrained
encoders, zero-shot classes, pictures, and a model that plain transformers loads. Afterwards: recipes/zero_shot.py.
"""

from hfssl.cli.command import command


@command
def main():
    from hfssl import RecipeParser, SiglipForPreTraining, SiglipPreTrainingConfig, SSLTrainer, SSLTrainingArguments
    from hfssl.cli.multimodal.data import PairData, PairDataArguments
    from hfssl.cli.multimodal.encoders import PairEncoderArguments, build_pair, pair_rows, text_checkpoint
    from hfssl.cli.multimodal.finish import finish_pairs
    from hfssl.cli.multimodal.probes import PairProbeArguments, pair_evaluators
    from hfssl.data.image.views import ViewArguments

    adam = {"weight_decay": 1e-4, "adam_beta2": 0.95, "adam_epsilon": 1e-8, "lr_scheduler_type": "cosine"}
    defaults = {"output_dir": "outputs/siglip", "per_device_train_batch_size": 128, "max_steps": 400, **adam}
    parser = RecipeParser(
        PairEncoderArguments, PairDataArguments, ViewArguments, SiglipPreTrainingConfig, PairProbeArguments,
        SSLTrainingArguments, description=__doc__, defaults=defaults,
        unused=("max_tokens", "local_crops", "local_size", "local_crop_scale"),
    )  # fmt: skip
    recipe, data_args, view_args, config, probe_args, args = parser.parse()
    checkpoint = args.claim_output_dir()
    data = PairData(data_args, config["pair"], text_checkpoint(recipe, config["pair"]), checkpoint)
    model = build_pair(SiglipForPreTraining, recipe, config, data, view_args, args, parser.given)
    rows, processor = pair_rows(model, recipe, data, view_args, parser.given)
    data.say_what_is_cut(rows)
    trainer = SSLTrainer(
        model, args, data.stream(args, rows), evaluators=pair_evaluators(data, rows, processor, probe_args, args),
        settings=data.settings, held_out=data.held_out_sides, processing_class=processor,
    )  # fmt: skip
    trainer.train()
    finish_pairs(trainer, data, rows, recipe.base_model)


if __name__ == "__main__":
    main()
