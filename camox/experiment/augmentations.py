"""Names that editors offer for `[[data.augment]]`.

Other transforms work too: they need an argument, such as a size or a reference image, or a newer albumentations.
"""

SUGGESTED = (
    # Where things are; the mask moves along.
    "HorizontalFlip", "VerticalFlip", "Transpose", "RandomRotate90", "D4", "SquareSymmetry", "Rotate", "SafeRotate",
    "Affine", "Perspective", "ElasticTransform", "GridDistortion", "OpticalDistortion", "ThinPlateSpline",
    "RandomGridShuffle",
    # Colour and light.
    "ColorJitter", "RandomBrightnessContrast", "RandomGamma", "RandomToneCurve", "HueSaturationValue", "RGBShift",
    "PlanckianJitter", "FancyPCA", "CLAHE", "Equalize", "AutoContrast", "Posterize", "Solarize", "InvertImg", "ToGray",
    "ToSepia", "ChannelShuffle", "ChannelDropout", "Illumination", "PlasmaBrightnessContrast", "PlasmaShadow",
    "RandomShadow", "ChromaticAberration",
    # Sharpness, noise and compression.
    "Blur", "GaussianBlur", "MedianBlur", "MotionBlur", "AdvancedBlur", "Defocus", "GlassBlur", "ZoomBlur", "Sharpen",
    "UnsharpMask", "Emboss", "RingingOvershoot", "GaussNoise", "ISONoise", "ShotNoise", "MultiplicativeNoise",
    "AdditiveNoise", "SaltAndPepper", "ImageCompression", "Downscale",
    # What lies in between.
    "CoarseDropout", "GridDropout", "PixelDropout", "Erasing", "XYMasking", "RandomFog", "RandomRain", "RandomSnow",
    "RandomSunFlare", "RandomGravel", "Spatter", "NoOp",
)  # fmt: skip
"""Class names of albumentations transforms."""
