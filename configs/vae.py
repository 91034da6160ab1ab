"""python main.py --config=configs/vae.py --workdir=/tmp/vae

Variants: small (default; embedded digits), digits (8x8), mnist (full MNIST), manifold (2-D latent),
gaussian, gaussian_shared, gaussian_pixel (likelihoods of grey pixels), linear (probabilistic PCA of
the 8x8 digits, beside its exact likelihood), evidence (log p(x) by three estimates), paper, test.

Measured on 2 cores (80 GFLOP/s). mnist, seeds 0, 1, 2: 89.48, 89.50, 89.61 nats on the 10,000 test
images (k = 500), bound 93.6, 93.8, 93.7, 22, 22, 21 units active; seed 0 took 9 min 12 s, 1 min of
it to evaluate, the others ran on one core each.
digits, seeds 0, 1, 2: 22.51, 22.79, 22.58 nats on 297 test images, 8 units active; the nearest
training image by latent means has the label of 97.0, 97.6, 97.0 % of them; under a minute.
Active units above are means over batches of the test images, now they are of the whole split:
digits, seed 0, on another processor, 8 units and 22.73 nats.
small, seed 0: 100.7 nats on 1,000 test images, 20 units active, 3 minutes on one core; manifold,
seed 0: 140.1 nats (the plane is too small for digits), 4 minutes. Of grey pixels in [0, 1], nats of
a density, seed 0: gaussian -472, gaussian_shared -501, gaussian_pixel -2,059 (of pixels that never
change it is sure), 2 to 3 minutes each, 9 with other work beside it.
evidence, seeds 0, 1, 2, 20 latents, means over 20 test digits: 10,000 draws of the prior give
-159.0, -160.9, -162.6 nats, 500 of q -114.4, -117.2, -117.6, annealing -113.7, -116.2, -117.1, the
ELBO -118.0, -121.1, -121.4; for 8 others a million draws of the prior are still about 20 nats too
low. 2 minutes of the processor, on busy cores.
"""

from configs import common

LIKELIHOODS = ("gaussian", "gaussian_shared", "gaussian_pixel")
VARIANTS = (
  *("small", "digits", "mnist", "manifold", *LIKELIHOODS, "linear", "evidence", "paper", "test"),
)


def get_config(variant="small"):
  if variant not in VARIANTS:
    raise common.unknown(variant, VARIANTS)
  c = common.base("vae")
  c.lr = 1e-3
  c.num_steps, c.batch_size = 10_000, 100
  c.log_every, c.sample_every, c.checkpoint_every = 200, 2_000, 2_500
  m = c.model
  m.z_dim, m.enc_widths, m.dec_widths, m.activation = 20, (400,), (400,), "tanh"
  m.likelihood, m.std = "bernoulli", 0.1  # std: of a pixel where it is gaussian; learned, its start
  m.one_var = False  # q(z|x) has the same variance for all x
  m.schedule, m.steps_per_epoch, m.adam_eps = "cosine", 3_000, 1e-8  # or burda, in epochs
  m.eval_k, m.eval_chunk = 500, 50
  m.evidence = m.evidence_shown = 0  # examples of a batch, and of the plots; 0: none
  m.chains, m.temperatures, m.leaps = 8, 500, 5  # of annealed importance sampling
  m.prior_exponent = 6  # plots go to 10^6 draws of the prior
  if variant == "mnist":
    c.data.source, c.data.name = "prepared", "mnist"
    c.lr = 2e-3
    c.num_steps, c.checkpoint_every, c.sample_every = 60_000, 10_000, 10_000
    m.z_dim, m.enc_widths, m.dec_widths = 50, (200, 200), (200, 200)
  if variant == "manifold":
    m.z_dim, m.enc_widths, m.dec_widths = 2, (400, 200), (200, 400)
  if variant == "digits":
    c.data.source, c.data.name = "installed", "digits"
    c.num_steps = 4_500  # 300 epochs of 1,500 digits of 8 x 8
    m.z_dim, m.enc_widths, m.dec_widths = 8, (200, 200), (200, 200)
  if variant in LIKELIHOODS:
    m.likelihood = variant
  if variant == "evidence":
    c.num_steps, c.sample_every = 2_000, 0
    m.evidence, m.evidence_shown = 2, 8
  if variant == "linear":  # its exact optimum is known: probabilistic PCA
    c.data.source, c.data.name = "installed", "digits"
    c.lr, c.batch_size, c.num_steps = 1e-2, 256, 6_000
    m.likelihood, m.one_var, m.std = "gaussian_shared", True, 1.0
    m.z_dim, m.enc_widths, m.dec_widths = 8, (), ()
  if variant == "paper":
    c.data.source, c.data.name = "prepared", "mnist"
    c.num_steps, c.batch_size, c.checkpoint_every = 9_840_000, 20, 100_000
    m.z_dim, m.enc_widths, m.dec_widths = 50, (200, 200), (200, 200)
    m.schedule, m.adam_eps, m.eval_k = "burda", 1e-4, 5_000
  if variant == "test":
    c.num_steps, c.batch_size, c.num_eval_samples = 2, 8, 16
    c.log_every = c.sample_every = c.checkpoint_every = 1
    m.z_dim, m.enc_widths, m.dec_widths, m.eval_k, m.eval_chunk = 2, (16,), (16,), 4, 2
  return c
