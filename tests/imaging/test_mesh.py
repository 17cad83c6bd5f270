"""Surfaces of balls and boxes with known volume, area, winding and distances; files; voxelisation."""

import json

import numpy as np
import pytest
import trimesh
from skimage.measure import marching_cubes

from transvert.imaging import mesh
from transvert.imaging.volume import cube_affine
from transvert.io import InputError

SPACING = 1.5
RADIUS = 18.0


def _ball(size=32, centre=(0.0, 0.0, 0.0), radius=RADIUS):
    """A soft ball (occupancy) and its affine, centred on the origin; `centre` moves the ball in its cube."""
    affine = cube_affine(np.zeros(3), size, SPACING)
    points = np.moveaxis(np.indices((size,) * 3), 0, -1) * SPACING + affine[:3, 3]
    distance = radius - np.linalg.norm(points - centre, axis=-1)
    return np.clip(distance / SPACING + 0.5, 0, 1).astype(np.float32), affine


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1), (-1, -1, -1)])
def test_a_balls_surface_has_its_volume_area_and_place_and_looks_outward(flips):
    ball, affine = _ball(centre=(2.0, -1.0, 3.0))
    surface = mesh.extract_surface(ball, np.diag([*flips, 1]) @ affine)
    centre = np.array(flips) * (2.0, -1.0, 3.0)
    assert surface.is_watertight
    assert surface.volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.01)
    assert surface.area == pytest.approx(4 * np.pi * RADIUS**2, rel=0.02)
    np.testing.assert_allclose(surface.center_mass, centre, atol=0.05)
    assert ((surface.face_normals * (surface.triangles_center - centre)).sum(axis=1) > 0).all()


def test_smoothing_removes_voxel_steps_and_keeps_the_volume():
    ball, affine = _ball()
    vertices, faces, _, _ = marching_cubes((ball >= 0.5).astype(np.float32), 0.5, spacing=(SPACING,) * 3)
    rough, smooth = trimesh.Trimesh(vertices, faces), mesh.extract_surface(ball >= 0.5, affine)
    assert smooth.volume == pytest.approx(abs(rough.volume), rel=0.005)
    assert smooth.area < 4 * np.pi * RADIUS**2 * 1.03 < rough.area


def test_a_shape_at_the_border_and_values_exactly_at_the_level_leave_no_holes():
    half = np.zeros((8, 8, 8), bool)
    half[:5, 2:6, 2:6] = True
    surface = mesh.extract_surface(half, np.eye(4))
    assert surface.is_watertight
    assert surface.bounds[0, 0] == pytest.approx(-0.5, abs=0.1)
    steps = np.random.default_rng(0).integers(0, 3, (12, 12, 12)) / 2
    assert mesh.extract_surface(steps, np.eye(4)).is_watertight
    ball, affine = _ball()
    rounded = mesh.extract_surface(np.rint(2 * ball) / 2, affine)
    assert rounded.is_watertight
    rounded.merge_vertices()
    assert rounded.is_watertight


@pytest.mark.parametrize("ending", [".stl", ".ply"])
def test_a_written_surface_reads_back_and_says_its_unit_and_frame(tmp_path, ending):
    surface = mesh.extract_surface(*_ball(centre=(5.0, 0.0, -2.0)))
    path = mesh.write_surface(tmp_path / f"ball{ending}", surface)
    back = mesh.read_surface(path)
    assert back.is_watertight
    assert back.volume == pytest.approx(surface.volume, rel=1e-4)
    np.testing.assert_allclose(back.bounds, surface.bounds, atol=1e-3)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert b"SPACE=RAS mm: x to the patient's right" in path.read_bytes()[:300]
    if ending == ".stl":
        assert path.stat().st_size == 84 + 50 * len(surface.faces)  # binary


def test_a_scene_has_a_named_node_a_vertebra_and_stands_upright_in_metres(tmp_path):
    t12, l1 = mesh.extract_surface(*_ball(centre=(2.0, 6.0, 5.0), radius=12.0)), mesh.extract_surface(*_ball())
    balls = {"T12": t12, "L1": l1}
    path = mesh.write_scene(tmp_path / "spine.glb", balls)
    content = path.read_bytes()
    assert content[:4] == b"glTF"
    said = json.loads(content[20 : 20 + int.from_bytes(content[12:16], "little")])
    (frame,) = [node for node in said["nodes"] if node["name"] == "ras_mm"]
    assert [said["nodes"][child]["name"] for child in frame["children"]] == ["T12", "L1"]
    assert "RAS mm" in json.dumps(said["scenes"][0]["extras"]) + json.dumps(said.get("extras", {}))
    scene = trimesh.load(path)
    assert set(scene.geometry) == {"T12", "L1"}
    for name, ball in balls.items():
        kept = scene.geometry[name]
        assert kept.is_watertight
        np.testing.assert_allclose(kept.bounds, ball.bounds, atol=1e-3)  # RAS mm below the node
        outward = (kept.vertex_normals * (kept.vertices - ball.center_mass)).sum(axis=1)
        assert (outward > 0).all()
    whole = scene.to_geometry()
    assert whole.volume == pytest.approx(1e-9 * sum(ball.volume for ball in balls.values()), rel=1e-3)
    upper = trimesh.transform_points(balls["T12"].center_mass[None], scene.graph.get("T12")[0])[0]
    np.testing.assert_allclose(upper, [-0.002, 0.005, 0.006], atol=1e-4)  # right to -X, head to +Y, front to +Z
    alone = trimesh.load(mesh.write_surface(tmp_path / "L1.glb", balls["L1"]))
    assert set(alone.geometry) == {"L1"}
    assert alone.to_geometry().extents[1] == pytest.approx(2e-3 * RADIUS, rel=0.02)


@pytest.mark.parametrize("ending", [".ply", ".glb"])
def test_colours_and_numbers_of_vertices_are_written(tmp_path, ending):
    surface = mesh.extract_surface(*_ball())
    colours = np.random.default_rng(0).integers(0, 255, (len(surface.vertices), 4)).astype(np.uint8)
    colours[:, 3] = 255
    surface.visual.vertex_colors = colours
    surface.vertex_attributes["sd_mm"] = np.linspace(0, 4, len(surface.vertices), dtype=np.float32)
    path = mesh.write_surface(tmp_path / f"ball{ending}", surface)
    back = trimesh.load(path, process=False)
    back = next(iter(back.geometry.values())) if ending == ".glb" else back
    np.testing.assert_array_equal(back.visual.vertex_colors, colours)
    if ending == ".ply":
        read = back.metadata["_ply_raw"]["vertex"]["data"]["sd_mm"]
        np.testing.assert_allclose(np.ravel(read), surface.vertex_attributes["sd_mm"])


def test_units_and_frames_are_brought_to_ras_millimetres(tmp_path):
    box = trimesh.creation.box(bounds=[[0.01, 0.02, 0.03], [0.02, 0.04, 0.06]])
    path = mesh.write_surface(tmp_path / "box.stl", box)
    lps = mesh.read_surface(path, unit="m", frame="LPS")
    np.testing.assert_allclose(lps.bounds, [[-20, -40, 30], [-10, -20, 60]], atol=1e-4)
    mirrored = mesh.read_surface(path, unit="m", frame="sra")  # the file's x is the head's, y the right, z the front
    np.testing.assert_allclose(mirrored.bounds, [[20, 30, 10], [40, 60, 20]], atol=1e-4)
    for surface in (lps, mirrored, mesh.read_surface(path, unit="m", frame="las")):
        assert surface.is_watertight and surface.volume == pytest.approx(6000, rel=1e-4)


def _row_of_balls(*radii):
    """Balls beside each other, 100 mm apart, one mesh; every other one is wound inward."""
    balls = [trimesh.creation.icosphere(subdivisions=2, radius=radius) for radius in radii]
    for place, ball in enumerate(balls):
        ball.apply_translation([100 * place, 0, 0])
        if place % 2:
            ball.invert()
    return mesh.join_surfaces(balls)


def test_the_largest_closed_pieces_are_the_vertebrae(tmp_path):
    path = mesh.write_surface(tmp_path / "row.stl", _row_of_balls(10, 4, 20, 5, 15, 6))
    pieces = mesh.largest_pieces(mesh.read_surface(path), 3, path.name)
    np.testing.assert_allclose([piece.extents[2] / 2 for piece in pieces], [20, 15, 10], rtol=1e-3)
    assert [round(piece.center_mass[0]) for piece in pieces] == [200, 400, 0]
    assert all(piece.is_watertight for piece in pieces)
    assert all(mesh.surface_to_ras(piece, "mm", "las").volume > 0 for piece in pieces), "each is wound outward"


def test_pieces_that_cannot_be_told_are_refused():
    row = _row_of_balls(10, 9, 20, 4)
    assert row.body_count == 4
    with pytest.raises(InputError, match=r"^row\.stl has 4 closed pieces for 5 levels; close its surfaces, or correct"):
        mesh.largest_pieces(row, 5, "row.stl")
    with pytest.raises(InputError, match="has another closed piece about as large as the smallest of its 2 vertebrae"):
        mesh.largest_pieces(row, 2, "row.stl")
    assert len(mesh.largest_pieces(row, 3, "row.stl")) == 3
    row.update_faces(np.arange(len(row.faces)) != 0)
    assert len(mesh.largest_pieces(row, 4, "row.stl")) == 4, "a hole of one triangle is closed"
    row.update_faces(np.arange(len(row.faces)) >= 40)  # one of forty, in the first, is not
    with pytest.raises(InputError, match="row.stl has 3 closed pieces for 4 levels"):
        mesh.largest_pieces(row, 4, "row.stl")
    with pytest.raises(InputError, match="has another open piece about as large as the smallest of its 2 vertebrae"):
        mesh.largest_pieces(row, 2, "row.stl")


def test_signed_distances_of_a_ball():
    ball, affine = _ball(centre=(1.0, 0.0, -2.0))
    directions = np.random.default_rng(0).normal(size=(500, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for offset in (-6.0, 0.0, 15.0):  # 15 mm out lies outside the cube
        found = mesh.signed_distance_at(directions * (RADIUS + offset) + (1.0, 0.0, -2.0), ball >= 0.5, affine)
        assert found.mean() == pytest.approx(offset, abs=0.15)
        assert np.abs(found - offset).max() < 0.75


@pytest.mark.parametrize("flips", [(1, 1, 1), (-2, 2, 2)])
def test_signed_distance_beside_a_wall(flips):
    wall = np.zeros((14, 14, 14), bool)
    wall[7:] = True  # its surface is half a voxel before voxel 7
    points = np.array([[5.5, 7, 7], [7.25, 7, 6.5], [2.0, 6, 7]])
    found = mesh.signed_distance_at(points * flips, wall, np.diag([*flips, 1]))
    np.testing.assert_allclose(found, np.array([1.0, -0.75, 4.5]) * flips[1], atol=0.05)


def test_a_voxelised_box_is_the_box():
    box = trimesh.creation.box(bounds=[[-3.0, 1.0, 2.0], [5.0, 7.0, 12.0]])
    volume = mesh.voxelise(box, 0.5)
    assert volume.data.dtype == np.uint8
    # Voxel centres lie on all faces and edges and on the faces' diagonals: each half-open interval holds its own.
    assert volume.data.sum() == 16 * 12 * 20
    inside = volume.world(np.argwhere(volume.data))
    assert (inside >= box.bounds[0]).all() and (inside <= box.bounds[1]).all()
    assert not volume.data[[0, -1]].any()


def test_mesh_to_voxels_and_back_keeps_a_turned_shape():
    ring = trimesh.creation.torus(14, 5)
    turn = trimesh.transformations.euler_matrix(0.5, 0.3, 0.2)
    turn[:3, 3] = (100.0, -50.0, 20.0)
    ring.apply_transform(turn)
    volume = mesh.voxelise(ring, 0.8)
    assert volume.data.sum() * 0.8**3 == pytest.approx(ring.volume, rel=0.01)
    back = mesh.extract_surface(volume.data, volume.affine)
    assert back.volume == pytest.approx(ring.volume, rel=0.02)
    assert back.euler_number == 0  # still a ring
    x, y, z = trimesh.transform_points(back.vertices, np.linalg.inv(turn)).T
    assert np.abs(np.hypot(np.hypot(x, y) - 14, z) - 5).max() < 0.8
    again = mesh.voxelise(back, 0.8)
    assert int(again.data.sum()) == pytest.approx(int(volume.data.sum()), rel=0.01)


def test_a_mesh_with_holes_is_filled_by_majority():
    ball = trimesh.creation.icosphere(subdivisions=4, radius=15)
    broken = trimesh.Trimesh(ball.vertices, np.delete(ball.faces, range(60), axis=0), process=False)
    filled, whole = (int(mesh.voxelise(surface, 1.0).data.sum()) for surface in (broken, ball))
    assert not broken.is_watertight and filled == pytest.approx(whole, rel=0.02)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda path: mesh.extract_surface(np.full((4, 4, 4), 0.4), np.eye(4)), "No voxel reaches 0.5"),
        (lambda path: mesh.join_surfaces([]), "no surface to join"),
        (lambda path: mesh.write_scene(path / "spine.glb", {}), "no surface to write"),
        (lambda path: mesh.write_surface(path / "box.xyz", trimesh.creation.box()), "is not a surface file"),
        (lambda path: mesh.read_surface(path / "absent.stl"), "does not exist"),
        (lambda path: mesh.read_surface(path / "box.vtk"), "convert the surface"),
        (lambda path: mesh.read_surface(path / "broken.ply"), "not a readable surface"),
        (lambda path: mesh.surface_to_ras(trimesh.creation.box(), "inch", "ras"), "not a unit"),
        (lambda path: mesh.surface_to_ras(trimesh.creation.box(), "mm", "rar"), "not a frame"),
        (lambda path: mesh.surface_to_ras(trimesh.creation.box(), "mm", "xyz"), "not a frame"),
        (lambda path: mesh.signed_distance_at(np.zeros((1, 3)), np.zeros((4, 4, 4), bool), np.eye(4)), "no surface"),
        (lambda path: mesh.voxelise(trimesh.creation.box(), 0), "positive millimetres"),
        (lambda path: mesh.voxelise(trimesh.Trimesh(), 1.0), "no faces"),
    ],
)
def test_bad_input(tmp_path, work, message):
    (tmp_path / "broken.ply").write_text("ply\nnonsense\n")
    with pytest.raises(InputError, match=message):
        work(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.ply"]
