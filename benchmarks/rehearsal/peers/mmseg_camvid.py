"""DANet R-50 on CamVid at stride 16, from scratch, as a configuration of mmsegmentation 1.2.2.

Its own DANet config with what the data set, the size and one process ask for. Sizes are (width, height) in ``scale``,
else (height, width).
"""

_base_ = "mmseg::danet/danet_r50-d8_4xb4-80k_ade20k-512x512.py"

crop_size = (48, 64)
scale = (120, 90)
iterations = 44
classes = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")

norm_cfg = dict(type="BN", requires_grad=True)  # SyncBN needs a GPU; the same with one process
head = dict(num_classes=11, norm_cfg=norm_cfg)
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=crop_size),
    backbone=dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), norm_cfg=norm_cfg),
    decode_head=head,
    auxiliary_head=head,
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=scale, keep_ratio=True),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
dataset = dict(_delete_=True, type="CamVidDataset", data_root="camvid", metainfo=dict(classes=classes))
loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    **loader,
    batch_size=16,
    dataset=dict(**dataset, data_prefix=dict(img_path="train", seg_map_path="trainannot"), pipeline=train_pipeline),
)
val_dataloader = dict(
    **loader,
    dataset=dict(**dataset, data_prefix=dict(img_path="val", seg_map_path="valannot"), pipeline=test_pipeline),
)
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=0.01))
param_scheduler = [dict(type="PolyLR", eta_min=1e-4, power=0.9, begin=0, end=iterations, by_epoch=False)]
train_cfg = dict(max_iters=iterations, val_interval=iterations)
log_processor = dict(window_size=4)
default_hooks = dict(logger=dict(interval=4), checkpoint=dict(interval=iterations, save_optimizer=False))
